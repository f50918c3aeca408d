"""A compiled module with collectives, for torchrun on two ranks: `test_mode_compiled` looks at what it communicates."""

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional


class Summed(torch.nn.Module):
    """Layers over the rows of all ranks, each of which sums up over them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.ones(4, 4) for _ in range(2))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            gathered = functional.all_gather_tensor(rows @ weight, 0, dist.group.WORLD)
            rows = functional.reduce_scatter_tensor(gathered, "sum", 0, dist.group.WORLD)
            rows = functional.all_reduce(rows @ weight, "sum", dist.group.WORLD)  # in place, once compiled
        return rows


def main() -> None:
    dist.init_process_group("gloo")
    model = torch.compile(Summed())
    for _ in range(2):
        with torch.no_grad():
            model(torch.ones(8, 4))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
