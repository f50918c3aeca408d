"""Expert parallelism: tokens go to the rank that holds their expert and come back, by an uneven all_to_all.

    torchrun --nproc-per-node 4 expert_parallel.py

Each rank holds some of the experts of every layer and a copy of everything else. The router is a hash layer: a
token's expert is a fixed function of its place in the batch and of the rank, with nothing to learn. The squares that it
takes leave out most residues, so some ranks send each other many rows and others none at all, and every rank can
work out all split sizes as plain integers without reading a tensor.
"""

import functools
import itertools
from collections import Counter

import torch
import torch.distributed as dist
from llama import CONFIGS, Config, FeedForward, Llama, choose_device, draw_batch, make_parser, measure_loss
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd


def route(tokens: int, rank: int, experts: int) -> list[int]:
    """The expert of each of a rank's tokens."""
    return [(place * place + rank) % experts for place in range(tokens)]


class Experts(nn.Module):
    """A feed-forward block of `experts` experts, spread evenly over the ranks, for `tokens` tokens on each rank."""

    def __init__(self, config: Config, *, experts: int, tokens: int) -> None:
        super().__init__()
        rank, world = dist.get_rank(), dist.get_world_size()
        local = experts // world
        self.mine = range(rank * local, (rank + 1) * local)
        self.experts = nn.ModuleDict({str(e): FeedForward(config) for e in self.mine})

        chosen = route(tokens, rank, experts)
        order = sorted(range(tokens), key=chosen.__getitem__)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("back", torch.tensor(sorted(range(tokens), key=order.__getitem__)), persistent=False)

        # On another rank p the experts are the same ones, moved by p - rank.
        sent = Counter(chosen)
        self.counts = [sent[e] for e in range(experts)]
        received = [[sent[(e - p + rank) % experts] for e in self.mine] for p in range(world)]
        self.input_splits = [sum(self.counts[p * local : (p + 1) * local]) for p in range(world)]
        self.output_splits = [sum(row) for row in received]
        self.pieces = list(itertools.chain.from_iterable(received))

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of `x` (batch, length, dim) by its expert, wherever that is."""
        rows = x.flatten(0, 1)[self.order]
        rows = all_to_all_single_autograd(rows, self.output_splits, self.input_splits, dist.group.WORLD)
        # Rows arrive by sender, and from each sender by expert; an expert takes its pieces from all senders at once.
        pieces, count = rows.split(self.pieces), len(self.mine)
        for i, expert in enumerate(self.experts.values()):
            done = expert(torch.cat(pieces[i::count])).split(self.pieces[i::count])
            pieces = [done[place // count] if place % count == i else piece for place, piece in enumerate(pieces)]
        rows = torch.cat(pieces)
        rows = all_to_all_single_autograd(rows, self.input_splits, self.output_splits, dist.group.WORLD)
        return rows[self.back].view_as(x)

    def measure_load(self) -> Tensor:
        """How many tokens each rank has sent to each of this rank's experts: (ranks, local experts)."""
        sent = torch.tensor(self.counts, device=self.order.device)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        return received.view(-1, len(self.mine))


def main() -> None:
    """Train for a few steps."""
    parser = make_parser(__doc__)
    parser.add_argument("--local-experts", type=int, default=2, help="experts on each rank, in each layer")
    options = parser.parse_args()
    config = CONFIGS[options.config]

    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = choose_device(options.device)

    experts = functools.partial(Experts, experts=options.local_experts * world, tokens=options.batch * options.length)
    with device:
        model = Llama(config, feed_forward=experts)
    model.init_weights(seed=0)
    for number, layer in model.layers.items():
        for expert, block in layer.ffn.experts.items():
            torch.manual_seed(10_000 * (int(number) + 1) + int(expert))
            for weight in block.parameters():
                nn.init.normal_(weight, std=0.02)
    shared = [p for name, p in model.named_parameters() if ".experts." not in name]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    load = model.layers["0"].ffn.measure_load()

    for step in range(options.steps):
        tokens, targets = draw_batch(config, size=options.batch, length=options.length, rank=rank, step=step)
        # Divided before the backward pass: an expert's gradient already is the sum over all ranks.
        loss = measure_loss(model(tokens.to(device)), targets.to(device)) / world
        loss.backward()
        for work in [dist.all_reduce(p.grad, async_op=True) for p in shared]:
            work.wait()
        optimizer.step()
        optimizer.zero_grad()

        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: loss {mean}, load of the first layer's experts here {load.sum(0)}")

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
