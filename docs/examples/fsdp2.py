"""Sharded data parallelism: FSDP2, one group of parameters per layer.

    torchrun --nproc-per-node 4 fsdp2.py

Each rank holds 1/W of every parameter. A layer's parameters are all-gathered before its forward pass and again before
its backward pass; its gradients are reduce-scattered. The norm of the gradients is a DTensor, a partial sum on each
rank, which `full_tensor` all-reduces.
"""

import torch
import torch.distributed as dist
from llama import CONFIGS, Llama, choose_device, draw_batch, make_parser, measure_loss
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def main() -> None:
    """Train for a few steps."""
    parser = make_parser(__doc__)
    parser.add_argument("--bf16", action="store_true", help="gather and compute in bfloat16, reduce in float32")
    options = parser.parse_args()
    config = CONFIGS[options.config]

    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = choose_device(options.device)

    with device:
        model = Llama(config)
    model.init_weights()
    precision = MixedPrecisionPolicy()
    if options.bf16:
        precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers.values():
        fully_shard(layer, mp_policy=precision)
    fully_shard(model, mp_policy=precision)
    # Made after sharding, so that the optimizer's state is sharded too.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    for step in range(options.steps):
        tokens, targets = draw_batch(config, size=options.batch, length=options.length, rank=rank, step=step)
        loss = measure_loss(model(tokens.to(device)), targets.to(device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0).full_tensor()
        optimizer.step()
        optimizer.zero_grad()

        mean = loss.detach() / world
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: loss {mean}, gradient norm {norm}")

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
