"""The schemas of the collective namespaces, as the installed torch registers them.

    python tests/schemas/snapshot.py > tests/schemas/torch-X.Y.Z.txt

A namespace is filled by whichever modules define its ops, so those are imported here first. Ops that only a
build option brings (a CUDA-only library, say) are absent from a CPU build, and so from its snapshot.
"""

import sys

import torch
import torch.distributed._functional_collectives  # the Python half of c10d_functional
import torch.distributed._symmetric_memory  # the Python half of symm_mem
import torch.distributed.fsdp  # fsdp
import torch.distributed.tensor  # _dtensor

NAMESPACES = frozenset(
    {"_c10d_functional", "_c10d_functional_autograd", "_dtensor", "c10d", "c10d_functional", "fsdp", "symm_mem"}
)


def schemas() -> list[str]:
    """Return every schema registered in `NAMESPACES`, as text, sorted."""
    registered = torch._C._jit_get_all_schemas()
    return sorted({str(schema) for schema in registered if schema.name.partition("::")[0] in NAMESPACES})


if __name__ == "__main__":
    sys.stdout.writelines(f"{schema}\n" for schema in schemas())
