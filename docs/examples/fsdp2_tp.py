"""Two dimensions: FSDP2 across `dp`, tensor and sequence parallelism across `tp`.

    torchrun --nproc-per-node 4 fsdp2_tp.py --tp 2
    torchrun --nnodes 128 --nproc-per-node 8 fsdp2_tp.py --config 8b --tp 8 --device cuda --length 8192

The ranks form a mesh (dp, tp). Within a row of tp ranks each linear layer is split by columns or by rows, and between
the linear layers every rank holds its part of the sequence, so activations are all-gathered and reduce-scattered.
Down a column of dp ranks the parts of the parameters are sharded again by FSDP2. The model is made without memory, on
the meta device, and gets its weights when each rank knows which parts are its own.
"""

import torch
import torch.distributed as dist
from llama import CONFIGS, Config, Llama, choose_device, draw_batch, make_parser, measure_loss
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)


def split_layers(model: Llama, mesh: DeviceMesh) -> None:
    """Apply tensor and sequence parallelism over the one-dimensional `mesh`."""
    whole, part = Replicate(), Shard(1)
    outer = {
        "embed": RowwiseParallel(input_layouts=whole, output_layouts=part),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=part, output_layouts=whole),
    }
    inner = {
        "attn_norm": SequenceParallel(),
        "attn": PrepareModuleInput(input_layouts=(part, None, None), desired_input_layouts=(whole, None, None)),
        "attn.wq": ColwiseParallel(),
        "attn.wk": ColwiseParallel(),
        "attn.wv": ColwiseParallel(),
        "attn.wo": RowwiseParallel(output_layouts=part),
        "ffn_norm": SequenceParallel(),
        "ffn": PrepareModuleInput(input_layouts=(part,), desired_input_layouts=(whole,)),
        "ffn.w1": ColwiseParallel(),
        "ffn.w2": RowwiseParallel(output_layouts=part),
        "ffn.w3": ColwiseParallel(),
    }
    parallelize_module(model, mesh, outer)
    for layer in model.layers.values():
        parallelize_module(layer, mesh, inner)


def build(config: Config, mesh: DeviceMesh, device: torch.device) -> Llama:
    """Make the model over the mesh (dp, tp), with this rank's parts of the weights."""
    with torch.device("meta"):
        model = Llama(config)
    split_layers(model, mesh["tp"])
    for layer in model.layers.values():
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    model.to_empty(device=device)
    model.init_weights()
    return model


def main() -> None:
    """Train for a few steps."""
    parser = make_parser(__doc__)
    parser.add_argument("--tp", type=int, default=2, help="the ranks of a tensor-parallel group")
    options = parser.parse_args()
    config = CONFIGS[options.config]

    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    device = choose_device(options.device)
    replicas = dist.get_world_size() // options.tp
    mesh = init_device_mesh(device.type, (replicas, options.tp), mesh_dim_names=("dp", "tp"))
    rank = mesh.get_local_rank("dp")

    model = build(config, mesh, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    for step in range(options.steps):
        # The ranks of a tensor-parallel group work on the same batch.
        tokens, targets = draw_batch(config, size=options.batch, length=options.length, rank=rank, step=step)
        loss = measure_loss(model(tokens.to(device)), targets.to(device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0).full_tensor()
        optimizer.step()
        optimizer.zero_grad()

        mean = loss.detach() / replicas
        dist.all_reduce(mean, group=mesh.get_group("dp"))
        if dist.get_rank() == 0:
            print(f"step {step}: loss {mean}, gradient norm {norm}")

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
