"""Record one real gloo run in every format at once, in two processes: `python -m tests.recorded DIRECTORY`.

Each rank writes `ledger{rank}.jsonl`, `kineto{rank}.json`, `et{rank}.json`, and Flight Recorder's `fr{rank}.json` and
`fr{rank}` (a pickle). The second group is of the same ranks.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as fc
import torch.multiprocessing as mp
from torch._C._distributed_c10d import _dump_fr_trace, _dump_fr_trace_json
from torch.profiler import ExecutionTraceObserver, ProfilerActivity, profile

import collective_rules as cr
from collective_rules.recordings import write_ledger

RANKS = 2


def communicate(rank: int, pair: dist.ProcessGroup) -> None:
    """Call each kind of collective that gloo has."""
    peer, x = 1 - rank, torch.ones(4, 3)
    two = [torch.empty(4, 3) for _ in range(RANKS)]
    dist.all_reduce(x)
    dist.all_reduce(x, op=dist.ReduceOp.MAX, group=pair)
    dist.all_reduce(torch.ones(4, 4)[:, :2].t().contiguous().t())
    dist.broadcast(x, src=1)
    dist.reduce(x, dst=1)
    dist.all_gather(two, x)
    dist.all_gather_into_tensor(torch.empty(8, 3), x)
    dist.reduce_scatter_tensor(torch.empty(2, 3), x)
    dist.reduce_scatter(torch.empty(4, 3), [x, x.clone()])
    dist.gather(x, two if rank == 0 else None, dst=0)
    dist.scatter(x, two if rank == 0 else None, src=0)
    dist.all_to_all_single(torch.empty(4, 3), x)
    sent, got = ([1, 3], [1, 2]) if rank == 0 else ([2, 2], [3, 2])
    rows = torch.empty(4, 3, dtype=torch.bfloat16)
    dist.all_to_all_single(torch.empty(sum(got), 3, dtype=torch.bfloat16), rows, got, sent)
    dist.all_to_all(two, [x, x.clone()])
    dist.send(x, peer, tag=5) if rank == 0 else dist.recv(x, peer, tag=5)
    dist.all_reduce(torch.tensor(1), async_op=True).wait()
    dist.barrier()
    dist.all_reduce_coalesced([x, torch.ones(5)])
    fc.wait_tensor(fc.all_gather_tensor(x, 0, dist.group.WORLD))
    fc.wait_tensor(fc.reduce_scatter_tensor(x, "sum", 0, dist.group.WORLD))
    fc.wait_tensor(fc.all_reduce(x, "max", dist.group.WORLD))
    both = [dist.P2POp(dist.isend, x, peer), dist.P2POp(dist.irecv, torch.empty(4, 3), peer)]
    for work in dist.batch_isend_irecv(both):
        work.wait()


def record(rank: int, directory: str) -> None:
    """Run on one rank."""
    os.environ["TORCH_FR_BUFFER_SIZE"] = "1000"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=RANKS)
    pair = dist.new_group([0, 1], group_desc="pair")
    observer = ExecutionTraceObserver().register_callback(f"{directory}/et{rank}.json")
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        observer.start()
        with cr.RuleMode(check=True) as ledger:
            communicate(rank, pair)
        observer.stop()
    observer.unregister_callback()
    profiler.export_chrome_trace(f"{directory}/kineto{rank}.json")
    Path(f"{directory}/fr{rank}.json").write_bytes(_dump_fr_trace_json())
    Path(f"{directory}/fr{rank}").write_bytes(_dump_fr_trace())
    write_ledger(ledger, f"{directory}/ledger{{rank}}.jsonl")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # at times torch aborts a process that ends well, while its threads are taken down


if __name__ == "__main__":
    mp.spawn(record, (sys.argv[1],), RANKS)
