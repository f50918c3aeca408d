"""PyTorch's own tests of torch.distributed pass on gloo, under a mode and under a guard, and nothing false is found.

Its class has 285 tests, of which most ask for GPUs or NCCL. Here are those that make collectives on three gloo ranks,
also if what they put on a GPU has to stay on the CPU; of those that have a twin for the CPU, only the twin. A selection
of each kind runs by default, all of them with `--hypothesis-profile=thorough`.
"""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from collective_rules import lookup, ops
from collective_rules.testing.dispatch import has_cpu_kernel
from tests.torch_own import DIED, FAILED, GUARD, HUNG, MODE, PASSED, THREAD, Launcher

for needed in ("expecttest", "numpy"):
    pytest.importorskip(needed, reason=f"torch's own tests need {needed}")

SIZE = 3
pytestmark = pytest.mark.filterwarnings("ignore")

_SELECTION = """
broadcast broadcast_group reduce_sum reduce_product reduce_min reduce_max reduce_group_sum reduce_sum_twice
all_reduce_sum all_reduce_product all_reduce_min all_reduce_max all_reduce_group_max all_reduce_sum_async
all_reduce_sum_complex sparse_all_reduce_sum all_reduce_coalesced_sum all_reduce_coalesced_max
all_reduce_coalesced_group_product gather gather_group gather_checks scatter scatter_group scatter_complex
scatter_checks all_gather all_gather_group all_gather_complex all_gather_coalesced_simple
all_gather_coalesced_complex all_gather_coalesced_group all_gather_coalesced_with_empty
all_to_all_single_equal_split all_to_all_single_equal_split_complex all_to_all_single_unequal_split
all_to_all_single_unequal_split_complex all_to_all_single_unequal_split_group send_recv send_recv_any_source
send_recv_with_tag isend irecv batch_isend_irecv_gloo batch_isend_irecv_gloo_tags barrier_group
monitored_barrier_gloo monitored_barrier_gloo_subgroup monitored_barrier_wait_all_ranks all_gather_object_default_pg
gather_object gather_object_subgroup scatter_object_list get_future DistributedDataParallelCPU ddp_create_graph
ddp_logging_data_cpu static_graph_api_cpu accumulate_gradients_no_sync accumulate_gradients_no_sync_allreduce_hook
grads_same_across_ranks_with_no_sync
"""
_GPU_SELECTION = """
coalescing_manager reduce_scatter_v_cuda all_gather_into_cat_tensor_cuda nccl_backend_bool_allgather
nccl_backend_bool_allreduce ddp_comm_hook_logging ddp_buffer_hook_allreduce ddp_uneven_input_join_disable
ddp_sync_module_states detect_ddp_is_actually_static
"""
_MORE = """
broadcast_full_group reduce_full_group_sum reduce_full_group_product reduce_full_group_min reduce_full_group_max
reduce_group_product reduce_group_min reduce_group_max all_reduce_group_sum all_reduce_group_product
all_reduce_group_min all_reduce_full_group_sum all_reduce_full_group_product all_reduce_full_group_min
all_reduce_full_group_max all_reduce_coalesced_product all_reduce_coalesced_min all_reduce_coalesced_group_sum
all_reduce_coalesced_group_min all_reduce_coalesced_group_max all_reduce_coalesced_full_group_sum
all_reduce_coalesced_full_group_product all_reduce_coalesced_full_group_min all_reduce_coalesced_full_group_max
gather_full_group scatter_full_group all_gather_full_group all_gather_coalesced_full_group
all_to_all_single_equal_split_group all_to_all_single_equal_split_full_group
all_to_all_single_unequal_split_full_group send_recv_autograd_profiler send_recv_torch_profiler
send_recv_any_source_autograd_profiler send_recv_any_source_torch_profiler send_recv_with_tag_autograd_profiler
send_recv_with_tag_torch_profiler isend_autograd_profiler isend_torch_profiler barrier barrier_full_group
barrier_timeout_global barrier_timeout_group barrier_timeout_full_group monitored_barrier_gloo_rank_0_timeout
monitored_barrier_failure_order all_gather_object_subgroup DistributedDataParallelCPU_grad_is_view
accumulate_gradients_no_sync_grad_is_view accumulate_gradients_no_sync_allreduce_with_then_hook
"""
_GPU_MORE = """
1_level_hierarchical_model_averager_equivalent_to_periodic_model_averager
DistributedDataParallel_with_amp_and_grad_is_view DistributedSampler_padding batch_isend_irecv_no_rank_zero_nccl
batch_isend_irecv_ring_exchange_nccl coalescing_manager_async ddp_broadcast_buffer ddp_broadcast_buffer_via_hook
ddp_broadcast_buffers_deprecation_warning ddp_bucket_cap_mb_list ddp_buffer_hook_allreduce_return_future
ddp_build_debug_param_to_name_mapping ddp_build_debug_param_to_name_mapping_requires_grad ddp_compile_static_graph
ddp_control_flow_different_across_ranks ddp_control_flow_same_across_ranks ddp_device_mesh_initialization
ddp_init_sync_buffers_with_forward_sync_buffers_false ddp_join_respects_forward_sync_buffers_false
ddp_model_diff_num_params_across_ranks ddp_multiple_nested_unused_params_err_ignore_params
ddp_multiple_nested_unused_params_error ddp_namedtuple ddp_profiling_torch_profiler ddp_python_error_logged
ddp_remove_autograd_hooks ddp_sink_noclone ddp_static_graph_nested_types ddp_uneven_input_exception
ddp_unused_params_rebuild_buckets_exception different_graph_across_ranks get_data_parallel_params
invalid_static_graph nccl_backend_bool_broadcast nccl_backend_bool_reduce output_unused_in_loss_dict_module
output_unused_in_loss_tuple_module periodic_model_averager periodic_model_averager_param_group
post_localSGD_optimizer_parity post_localSGD_optimizer_parity_grad_is_view post_localSGD_optimizer_step_reload
send_recv_nccl send_recv_nccl_autograd_profiler send_recv_nccl_torch_profiler skip_all_reduce_unused_parameters
static_graph_multi_forward
"""
_GUARDED = """
all_reduce_sum_async gather_object scatter_checks all_to_all_single_unequal_split send_recv_any_source
batch_isend_irecv_gloo coalescing_manager get_future accumulate_gradients_no_sync_allreduce_hook
"""
_IN_THREADS = "reduce_sum isend ddp_comm_hook_logging"
"""What runs by default under a guard, and there in a thread that ran before it."""

SELECTION = [*_SELECTION.split(), *_GPU_SELECTION.split()]
MORE = [*_MORE.split(), *_GPU_MORE.split()]
RUNS = {MODE: SELECTION[::2], GUARD: _GUARDED.split(), THREAD: _IN_THREADS.split()}
"""The tests that run by default, each under one of these; with --hypothesis-profile=thorough all run, under each."""
GPUS = {*_GPU_SELECTION.split(), *_GPU_MORE.split()}

WRAPPED = {"gather_object_subgroup", "all_gather_object_subgroup"}
"""At debug level DETAIL torch wraps their group in another, whose own collectives gloo records, under no name."""

TRULY_FOUND = {"nccl_backend_bool_allreduce": "GLOO4", "nccl_backend_bool_reduce": "GLOO4"}
"""They add up bools, of which gloo adds the bytes: the 2 that comes out counts as true, and the test passes."""

REFUSED = {
    "all_to_all": ("ProcessGroupGloo::alltoall: invalid tensor size", "gloo takes only the even form"),
    "all_gather_v_cuda": ("ProcessGroupGloo::allgather: invalid tensor size", "gloo takes only the even form"),
    "all_gather_into_stack_tensor_cuda": (
        "ProcessGroupGloo::allgather: invalid tensor size",
        "gloo takes only the concatenated form",
    ),
    "reduce_scatter_tensor_cuda": (
        "Check failed: outputShape[0] * worldSize == inputShape[0]",
        "gloo takes only the concatenated form",
    ),
    "batch_isend_irecv_self_nccl": ("Pair is not connected", "is this very rank"),
}
"""Tests of what gloo does not do, for which torch skips it: gloo's words, and the mode's."""


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher(SIZE) as launched:
        yield launched


def test_what_runs_are_tests_of_torch(launcher: Launcher) -> None:
    names = [*SELECTION, *MORE, *REFUSED]
    known = launcher.names()
    assert [] == [name for name in names if f"test_{name}" not in known]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("way", RUNS)
@pytest.mark.parametrize("name", [*SELECTION, *MORE])
def test_torch_passes_and_nothing_false_is_found(launcher: Launcher, name: str, way: str) -> None:
    """Every collective of the test was checked, and gloo's Flight Recorder holds what the ledger says."""
    if name not in RUNS[way] and settings.get_current_profile_name() != "thorough":
        pytest.skip("runs with --hypothesis-profile=thorough: another test of its kind runs by default")
    outcome = launcher.run(f"test_{name}", way=way, gpus=name in GPUS)
    assert (PASSED, ()) == (outcome.outcome, outcome.texts)
    assert [] == [text for text in outcome.findings if TRULY_FOUND.get(name, "nothing") not in text]
    assert sum(outcome.ops.values()) > 0
    assert (name in WRAPPED) == bool(outcome.unlike), outcome.unlike


@pytest.mark.parametrize("name", REFUSED)
def test_what_gloo_refuses_is_refused_before(launcher: Launcher, name: str) -> None:
    """No false alarm: without the mode, gloo raises for the same call."""
    if name != "all_to_all" and settings.get_current_profile_name() != "thorough":
        pytest.skip("runs with --hypothesis-profile=thorough: another test of its kind runs by default")
    alone, checked = (
        launcher.run(f"test_{name}", way=way, gpus="_cuda" in name or "_nccl" in name) for way in ("", MODE)
    )
    theirs, ours = REFUSED[name]
    assert (FAILED, FAILED) == (alone.outcome, checked.outcome)
    assert any(theirs in text for text in alone.texts), alone.texts
    assert checked.findings
    assert [] == [text for text in checked.findings if ours not in text]


def test_a_call_of_each_kind_is_recorded_as_the_ledger_says(launcher: Launcher) -> None:
    """Also those that neither torch's tests nor the examples make: of torch.distributed each op that gloo has."""
    outcome = launcher.run("tests.rank_programs:call_each_kind")
    assert (PASSED, (), (), ()) == (outcome.outcome, outcome.texts, outcome.findings, outcome.unlike)
    assert set() == {op for op in ops() if op.startswith("c10d::") and has_cpu_kernel(lookup(op))} - {*outcome.ops}


# -- the launcher: what goes wrong is told


@pytest.mark.parametrize(
    ("program", "outcome", "text"),
    [
        ("send_illegal", FAILED, "CallError"),
        ("fail_on_one_rank", FAILED, "rank 1: Traceback"),
        ("die_on_one_rank", DIED, "rank 1: exit status 7"),
        ("hang", HUNG, "rank 0: exit status None"),
    ],
)
def test_what_goes_wrong_on_a_rank_is_told(launcher: Launcher, program: str, outcome: str, text: str) -> None:
    told = launcher.run(f"tests.rank_programs:{program}", deadline=3)
    assert outcome == told.outcome
    assert any(text in line for line in told.texts), told.texts


def test_an_error_that_the_test_catches_is_told(launcher: Launcher) -> None:
    told = launcher.run("tests.rank_programs:catch_illegal")
    assert (PASSED, SIZE) == (told.outcome, len(told.findings))


def test_a_call_that_is_not_in_the_ledger_is_told(launcher: Launcher) -> None:
    """On the backend object, past every mode: the recorder has it."""
    told = launcher.run("tests.rank_programs:pass_by_the_mode")
    assert (PASSED, {"c10d::allreduce_": SIZE}) == (told.outcome, told.ops)
    assert [f"rank {rank}: group 0, entry 1: None in the ledger" for rank in range(SIZE)] == [
        text.partition(",")[0] + text[text.index(", entry") :].partition(", Recorded")[0] for text in told.unlike
    ]
