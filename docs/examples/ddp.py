"""Data parallelism: DistributedDataParallel.

    torchrun --nproc-per-node 4 ddp.py

Every rank holds the whole model and sees its own batch. DDP sends the parameters from rank 0 once, the buffers (here
the tables of angles) before each forward pass, and all-reduces the gradients, bucket by bucket, during the backward
pass. The last collective of a step is the mean of the loss, for the log.
"""

import torch
import torch.distributed as dist
from llama import CONFIGS, Llama, choose_device, draw_batch, make_parser, measure_loss
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Train for a few steps."""
    parser = make_parser(__doc__)
    parser.add_argument("--bucket-mb", type=float, default=0.25, help="the size of a gradient bucket")
    options = parser.parse_args()
    config = CONFIGS[options.config]

    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = choose_device(options.device)

    with device:
        model = Llama(config)
    model.init_weights()
    model = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        bucket_cap_mb=options.bucket_mb,
        gradient_as_bucket_view=True,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    for step in range(options.steps):
        tokens, targets = draw_batch(config, size=options.batch, length=options.length, rank=rank, step=step)
        loss = measure_loss(model(tokens.to(device)), targets.to(device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()

        mean = loss.detach() / world
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: loss {mean}, gradient norm {norm}")

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
