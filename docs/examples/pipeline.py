"""Pipeline parallelism: each rank holds some of the layers, activations go from rank to rank.

    torchrun --nproc-per-node 4 pipeline.py
    torchrun --nproc-per-node 2 pipeline.py --schedule gpipe

The first stage embeds the tokens and the last one knows the loss. What goes between the stages is given as example
tensors on the meta device, so that the stages need not send each other shapes; before the first step they only vote,
by send and recv of one integer, that this is so. Then micro-batches go forward and their gradients come back.
"""

import torch
import torch.distributed as dist
from llama import CONFIGS, Llama, choose_device, draw_batch, make_parser, measure_loss
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import ModuleDict

SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


def keep_stage(model: Llama, stage: int, stages: int) -> Llama:
    """Leave in the model only what one of the stages holds: an equal share of the layers, give or take one."""
    count = model.config.layers
    first, last = count * stage // stages, count * (stage + 1) // stages
    model.layers = ModuleDict({str(i): model.layers[str(i)] for i in range(first, last)})
    if stage > 0:
        model.embed = None
    if stage < stages - 1:
        model.norm = model.output = None
    return model


def main() -> None:
    """Train for a few steps."""
    parser = make_parser(__doc__)
    parser.add_argument("--schedule", choices=SCHEDULES, default="1f1b")
    parser.add_argument("--micro-batches", type=int, default=4, help="must divide --batch")
    options = parser.parse_args()
    config = CONFIGS[options.config]

    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    rank, stages = dist.get_rank(), dist.get_world_size()
    device = choose_device(options.device)

    # On the meta device the layers that are not kept cost nothing.
    with torch.device("meta"):
        model = keep_stage(Llama(config), rank, stages)
        rows = options.batch // options.micro_batches
        tokens = torch.empty(rows, options.length, dtype=torch.int64)
        hidden = torch.empty(rows, options.length, config.dim, requires_grad=True)
        logits = torch.empty(rows, options.length, config.vocab, requires_grad=True)
    model.to_empty(device=device)
    model.init_weights()
    stage = PipelineStage(
        model,
        rank,
        stages,
        device,
        input_args=(tokens if rank == 0 else hidden,),
        output_args=(logits if rank == stages - 1 else hidden,),
    )
    schedule = SCHEDULES[options.schedule](stage, options.micro_batches, loss_fn=measure_loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    for step in range(options.steps):
        tokens, targets = draw_batch(config, size=options.batch, length=options.length, rank=0, step=step)
        losses = []
        inputs = (tokens.to(device),) if rank == 0 else ()
        schedule.step(*inputs, target=targets.to(device) if rank == stages - 1 else None, losses=losses)
        optimizer.step()
        optimizer.zero_grad()
        if rank == stages - 1:
            print(f"step {step}: loss {torch.stack(losses).detach().mean()}")

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
