"""The attributes of torch that a dry run replaces: which, by what, and why. Rows only; `patches` applies them."""

from __future__ import annotations

import attrs


@attrs.frozen
class Patch:
    """Some attributes that one function, class or value of `dryrun` replaces.

    - `owners`: modules and classes, separated by spaces; each attribute is replaced in those owners that have it.
    - `attributes`: names, separated by spaces; "*" stands for all methods of a class without double underscores.
    - `by`: the replacement, such as "training._compile" for the function of this name in training.py.
    - `why`: why torch's own attribute does not work in a dry run.
    - `since`, `until`: the first torch that has the attributes, and the first that lacks them; "" for no bound.
    - `may_be_absent`: whether a dry run works with a torch that lacks the attributes; else their absence is an error.
    - `here_only`: whether other modules keep the attribute where they have imported it by name.
    """

    owners: str
    attributes: str
    by: str
    why: str
    since: str = ""
    until: str = ""
    may_be_absent: bool = False
    here_only: bool = False


_C10D = "torch.distributed.distributed_c10d"
_CHECKPOINT = "torch.distributed.checkpoint"
_CUDA = "torch.cuda torch.accelerator"
_DDP = "torch.nn.parallel.distributed.DistributedDataParallel"
_FSDP = "torch.distributed.fsdp"
_MESH = "torch.distributed.device_mesh"
_SAMPLERS = (
    "torch.utils.data.RandomSampler torch.utils.data.SubsetRandomSampler torch.utils.data.WeightedRandomSampler "
    "torch.utils.data.DistributedSampler"
)
_SHARD = "torch.distributed.tensor.placement_types._StridedShard"
_STAGE = "torch.distributed.pipelining.stage.PipelineStage"
_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"

_NO_GPU = "there is no GPU"
_NO_KERNEL = "the cpu has no kernel for it"
_NO_OTHERS = "there are no other ranks"
_NO_VALUES = "it reads values"
_OBJECTS = "it exchanges pickled objects"
_ON_CPU = "it names a device that is not there"
_OTHER_OPS = "other ops are used on the cpu"
_EAGER = "fake tensors run eagerly"

PATCHES = (
    # A program's questions to an accelerator.
    Patch(_CUDA, "is_available is_initialized", "devices._is_available", _NO_GPU),
    Patch(_CUDA, "device_count", "devices.device_count", _NO_GPU),
    Patch(_CUDA, "current_device current_device_index current_device_idx", "devices.current_device", _NO_GPU),
    Patch(_CUDA, "set_device set_device_index set_device_idx", "devices.set_device", _NO_GPU),
    Patch("torch.accelerator", "current_accelerator", "devices._current_accelerator", _NO_GPU),
    Patch(
        _CUDA,
        "memory_allocated max_memory_allocated memory_reserved max_memory_reserved memory_cached max_memory_cached "
        "utilization temperature power_draw clock_rate memory_usage device_memory_used initial_seed "
        "get_sync_debug_mode",
        "devices._zero",
        _NO_GPU,
    ),
    Patch(
        _CUDA,
        "synchronize empty_cache ipc_collect init reset_peak_memory_stats reset_accumulated_memory_stats "
        "reset_max_memory_allocated reset_max_memory_cached set_per_process_memory_fraction set_stream manual_seed "
        "manual_seed_all seed seed_all set_rng_state set_rng_state_all set_sync_debug_mode empty_host_cache "
        "reset_peak_host_memory_stats reset_accumulated_host_memory_stats",
        "devices._nothing",
        _NO_GPU,
    ),
    Patch(_CUDA, "_lazy_init _sleep", "devices._nothing", _NO_GPU, may_be_absent=True),
    Patch("torch.cuda.nvtx", "range_push range_pop mark range_start range_end", "devices._nothing", _NO_GPU),
    Patch(
        "torch.cuda.memory", "_record_memory_history _dump_snapshot", "devices._nothing", _NO_GPU, may_be_absent=True
    ),
    Patch("torch.cuda.profiler", "start stop", "devices._nothing", _NO_GPU),
    Patch(_CUDA, "is_bf16_supported can_device_access_peer", "devices._true", _NO_GPU),
    Patch(_CUDA, "is_current_stream_capturing", "devices._false", _NO_GPU),
    Patch(_CUDA, "memory_summary", "devices._no_text", _NO_GPU),
    Patch(_CUDA, "get_allocator_backend", "devices._allocator", _NO_GPU),
    Patch(_CUDA, "get_device_name", "devices._device_name", _NO_GPU),
    Patch(_CUDA, "get_device_capability", "devices._capability", _NO_GPU),
    Patch(_CUDA, "get_device_properties", "devices._properties", _NO_GPU),
    Patch(_CUDA, "mem_get_info get_memory_info", "devices._free_and_all_memory", _NO_GPU),
    Patch(_CUDA, "memory_stats host_memory_stats", "devices._memory_stats", _NO_GPU),
    Patch("torch.cuda.memory", "memory_snapshot", "devices._memory_snapshot", _NO_GPU),
    Patch("torch.cuda.memory", "_snapshot", "devices._snapshot", _NO_GPU, may_be_absent=True),
    Patch(_CUDA, "current_stream default_stream", "devices._current_stream", _NO_GPU),
    Patch(_CUDA, "device stream device_of", "devices._context", _NO_GPU),
    Patch("torch.cuda.profiler", "profile", "devices._context", _NO_GPU),
    Patch(_CUDA, "cudart", "devices._cudart", _NO_GPU),
    Patch(_CUDA, "get_rng_state", "devices._get_rng_state", _NO_GPU),
    Patch(_CUDA, "get_rng_state_all", "devices.get_rng_state_all", _NO_GPU),
    Patch("torch.cuda", "Stream Event ExternalStream", "devices._Stream", _NO_GPU),
    Patch("torch.cuda.nccl", "version", "devices._nccl_version", _NO_GPU),
    Patch("torch.version", "cuda", "devices._CUDA_VERSION", _NO_GPU),
    # Devices that reach torch by no torch function.
    Patch("torch._C._nn", "_parse_to", "devices.parse_to", _ON_CPU),
    Patch("torch", "set_default_device", "devices.set_default_device", _ON_CPU),
    Patch("torch", "Generator", "devices.Generator", _ON_CPU, here_only=True),
    Patch("torch.amp.autocast_mode.autocast", "__init__", "devices.init_autocast", _ON_CPU),
    Patch("torch.autograd.graph", "_engine_run_backward", "devices.run_backward", _ON_CPU),
    # Process groups.
    Patch(_C10D, "init_process_group", "fake_groups.init_process_group", _NO_OTHERS),
    Patch(_C10D, "new_group", "fake_groups.new_group", _NO_OTHERS),
    Patch(_C10D, "split_group", "fake_groups.split_group", "a fake group cannot be split"),
    Patch(_C10D, "get_backend", "fake_groups.get_backend", "the backend is a fake one"),
    Patch(_C10D, "monitored_barrier", "fake_groups._monitored_barrier", "it needs gloo"),
    Patch(
        "torch.distributed",
        "is_nccl_available is_gloo_available",
        "devices._true",
        "no backend is used",
        here_only=True,
    ),
    Patch(
        _C10D,
        "all_gather_object gather_object scatter_object_list send_object_list recv_object_list",
        "fake_groups._with_real_tensors",
        _OBJECTS,
    ),
    Patch(_C10D, "broadcast_object_list", "fake_groups._broadcast_own", _OBJECTS),
    Patch(_MESH, "init_device_mesh", "fake_groups.outside_modes", _NO_VALUES),
    Patch(f"{_MESH}.DeviceMesh", "__init__ __getitem__ *", "fake_groups.outside_modes", _NO_VALUES),
    # Models and wrappers.
    Patch("torch", "compile", "training._compile", _EAGER),
    Patch("torch.nn.Module", "compile", "devices._nothing", _EAGER),
    Patch("torch.nn.attention.flex_attention", "flex_attention", "attention._flex_attention", _NO_KERNEL),
    Patch("torch.nn.SyncBatchNorm", "forward", "batchnorm.normalize", _NO_KERNEL),
    Patch(_DDP, "_passing_sync_batchnorm_handle", "batchnorm.accept", "it refuses the cpu"),
    Patch(_DDP, "__init__", "training.wrap_on_cpu", _ON_CPU),
    Patch(_DDP, "_check_comm_hook", "training.check_comm_hook", "it refuses a torch without CUDA"),
    Patch(
        "torch.distributed.utils", "_verify_param_shape_across_processes", "fake_groups._with_real_tensors", _NO_VALUES
    ),
    Patch(f"{_FSDP}.FullyShardedDataParallel", "__init__", "training.shard_on_cpu", _ON_CPU),
    Patch(f"{_FSDP}._flat_param.FlatParamHandle", "_all_gather_flat_param", "training.gather_in_one", _OTHER_OPS),
    Patch(f"{_FSDP}._flat_param.FlatParamHandle", "to_cpu", "training._stay_on_cpu", "the memory is not freed"),
    Patch("torch.distributed.utils", "_data_ptr_allocated", "training._has_memory", "a fake tensor has no address"),
    Patch(
        f"{_FSDP}._init_utils",
        "_check_module_states_for_sync_module_states",
        "training.accept_states",
        "it refuses the cpu",
    ),
    Patch(f"{_FSDP}._fully_shard._fsdp_common", "_chunk_with_empty", "training._Chunks", "its list is too long"),
    Patch("torch.distributed.tensor._collective_utils", "shard_dim_alltoall", "training.swap_dims", _OTHER_OPS),
    Patch(_STAGE, "_warmup_forward_vote", "training.vote", _NO_OTHERS),
    Patch(_STAGE, "_warmup_backward_result", "training.count_votes", _NO_OTHERS),
    # Values, data and processes.
    Patch("torch.utils", "weakref", "training._no_weakrefs", "Module.to refuses the weak references of fake tensors"),
    Patch("torch.nn.init", "_no_grad_trunc_normal_", "training._draw_normal", _NO_VALUES),
    Patch("torch.distributions.Distribution", "_validate_args", "training._no_validation", _NO_VALUES),
    Patch("torch.amp.GradScaler", "__init__", "training._disable_scaler", _NO_VALUES),
    Patch("torch.Tensor", "numpy __array__", "training._read_array", _NO_VALUES),
    Patch("torch.Tensor", "tolist", "training._read_list", _NO_VALUES),
    Patch("torch.Tensor", "__format__", "training._write_number", _NO_VALUES),
    Patch("torch._subclasses.fake_tensor.FakeTensor", "__reduce_ex__", "training._refuse_pickling", _NO_VALUES),
    Patch(_SAMPLERS, "__iter__", "training._draw_real", _NO_VALUES),
    Patch("torch.utils.data.dataset", "random_split", "fake_groups._with_real_tensors", _NO_VALUES),
    Patch("torch.utils.data.DataLoader", "__init__", "training._load_here", "it starts processes"),
    Patch("torch.multiprocessing", "spawn", "training.spawn", "it starts processes"),
    # Files.
    Patch("torch", "save", "training.save", "it writes a file"),
    Patch("torch", "load", "training.load", "the file was not written"),
    Patch(f"{_CHECKPOINT}.state_dict_saver", "_save_state_dict", "checkpoints._save_nowhere", "it writes files"),
    Patch(f"{_CHECKPOINT}.state_dict_loader", "_load_state_dict", "checkpoints._load_nothing", "it reads files"),
    Patch(f"{_CHECKPOINT}._storage_utils", "_storage_setup", "checkpoints._any_storage", "it opens files"),
    Patch(_CHECKPOINT, "async_save", "checkpoints._save_at_once", "it starts a thread or a process"),
    Patch(
        f"{_CHECKPOINT}.utils._DistWrapper",
        "reduce_scatter all_reduce all_gather broadcast",
        "checkpoints._exchange",
        _OBJECTS,
    ),
    Patch(
        "torch.distributed._state_dict_utils", "_broadcast_state_dict", "checkpoints._broadcast_state_dict", _OBJECTS
    ),
    Patch(_SHARD, "local_shard_size_and_offset", "checkpoints._shard_size_and_offset", _NO_VALUES),
    Patch(
        "torch.distributed.tensor._utils",
        "compute_local_shape_and_global_offset",
        "fake_groups.outside_modes",
        _NO_VALUES,
    ),
    Patch(f"{_ZERO}.ZeroRedundancyOptimizer", "consolidate_state_dict", "zero_optimizer.consolidate", _OBJECTS),
    Patch(_ZERO, "_broadcast_object", "zero_optimizer.exchange", _OBJECTS),
)
"""All patches."""
