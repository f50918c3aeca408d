"""Context parallelism: every rank holds a part of each sequence, keys and values go round a ring.

    torchrun --nproc-per-node 4 context_parallel.py --length 64

Attention meets one block of keys and values after the other. Each rank sends the block it has to the next rank while
it works on it, and merges what it finds into a running softmax. In the backward pass the blocks go round once more,
and with them their gradients, which take one hop more to come home.
"""

import torch
import torch.distributed as dist
from llama import CONFIGS, Llama, choose_device, draw_batch, make_parser, measure_loss
from torch import Tensor


def pass_on(*tensors: Tensor) -> tuple[list[Tensor], list[dist.Work]]:
    """Begin to send the tensors to the next rank of the ring, and as many from the one before into new tensors."""
    rank, world = dist.get_rank(), dist.get_world_size()
    incoming = [torch.empty_like(tensor) for tensor in tensors]
    sends = [dist.P2POp(dist.isend, tensor, (rank + 1) % world) for tensor in tensors]
    receives = [dist.P2POp(dist.irecv, tensor, (rank - 1) % world) for tensor in incoming]
    return incoming, dist.batch_isend_irecv(sends + receives)


def score(q: Tensor, k: Tensor, source: int, rank: int) -> Tensor:
    """The scaled scores of q (batch, heads, length, head_dim) against rank `source`'s keys; -inf in the future."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if source == rank:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores


class RingAttention(torch.autograd.Function):
    """Causal attention over a sequence of which each rank, in order, holds an equal part."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take (batch, heads, length, head_dim); k and v may have fewer heads than q."""
        rank, world = dist.get_rank(), dist.get_world_size()
        shared = q.shape[1] // k.shape[1]
        block, total, out = torch.stack((k, v)), None, None
        for hop in range(world):
            works = []
            if hop < world - 1:
                incoming, works = pass_on(block)
            # What a later rank holds is in the future: nothing to do, but it must be passed on.
            source = (rank - hop) % world
            if source <= rank:
                keys, values = block.repeat_interleave(shared, dim=2)
                scores = score(q, keys, source, rank)
                part = scores.logsumexp(-1, keepdim=True)
                found = (scores - part).exp() @ values
                if total is None:
                    total, out = part, found
                else:
                    merged = torch.logaddexp(total, part)
                    out = out * (total - merged).exp() + found * (part - merged).exp()
                    total = merged
            for work in works:
                work.wait()
            if works:
                (block,) = incoming
        ctx.save_for_backward(q, k, v, out, total)
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pass keys and values round again, and add to their gradients at each rank."""
        rank, world = dist.get_rank(), dist.get_world_size()
        q, k, v, out, total = ctx.saved_tensors
        shared = q.shape[1] // k.shape[1]
        delta = (grad_out * out).sum(-1, keepdim=True)
        block, grad_q = torch.stack((k, v)), torch.zeros_like(q)
        grad_block = torch.zeros_like(block)
        for hop in range(world):
            source = (rank - hop) % world
            if source <= rank:
                keys, values = block.repeat_interleave(shared, dim=2)
                weights = (score(q, keys, source, rank) - total).exp()
                grad_scores = weights * (grad_out @ values.transpose(-1, -2) - delta) * q.shape[-1] ** -0.5
                grad_q += grad_scores @ keys
                pair = torch.stack((grad_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad_out))
                grad_block += pair.unflatten(2, (-1, shared)).sum(3)
            (block, grad_block), works = pass_on(block, grad_block)
            for work in works:
                work.wait()
        return grad_q, *grad_block


def main() -> None:
    """Train for a few steps."""
    options = make_parser(__doc__).parse_args()
    config = CONFIGS[options.config]

    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = choose_device(options.device)

    with device:
        model = Llama(config, kernel=RingAttention.apply)
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    part = options.length // world

    for step in range(options.steps):
        # All ranks draw the same sequences, and each keeps its part.
        whole = draw_batch(config, size=options.batch, length=part * world, rank=0, step=step)
        tokens, targets = (x[:, rank * part : (rank + 1) * part].to(device) for x in whole)
        loss = measure_loss(model(tokens, start=rank * part), targets) / world
        loss.backward()
        for work in [dist.all_reduce(p.grad, async_op=True) for p in model.parameters()]:
            work.wait()
        optimizer.step()
        optimizer.zero_grad()

        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: loss {mean}")

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
