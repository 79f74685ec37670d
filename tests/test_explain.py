"""What questions about one breakpoint share: one head run, one conversion, one matrix; and the ways of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import l2caf_onnx as caf
from l2caf_onnx import runtime, solvers
from l2caf_onnx.explain import collapsed as collapsing
from l2caf_onnx.explain import filtered as filtering
from l2caf_onnx.explain import stop as stops
from l2caf_onnx.explain.batches import at_once, batches
from l2caf_onnx.explain.collapsed import Collapsed
from l2caf_onnx.explain.explanation import Explanation
from l2caf_onnx.explain.filtered import ONE_BY_ONE, Filtered
from l2caf_onnx.explain.query import plan, planned
from l2caf_onnx.explain.scene import Scene, record
from l2caf_onnx.explain.stop import stop_at
from l2caf_onnx.tail import to_torch
from tests.conftest import normal, weighted

POOLED = """g (float[N,3,6,6] x) => (float[N,5] y) <float[4,3,3,3] w, float[4,5] v, float[5] b> {
  c = Conv (x, w)  s = Relu (c)  p = GlobalAveragePool (s)  f = Flatten (p)  y = Gemm (f, v, b) }"""
POOLED_LAST = """g (float[N,8,8,3] x) => (float[N,5] y) <float[3,4] w, float[4,5] v, int64[2] cells = {1,2}> {
  c = MatMul (x, w)  s = Relu (c)  p = ReduceSum <keepdims = 0> (s, cells)  y = MatMul (p, v) }"""
SPREAD = """g (float[N,3,6,6] x) => (float[N,8] y) <float[4,3,3,3] w, float[4,4,3,3] u, float[16,8] v> {
  c = Conv (x, w)  s = Relu (c)  d = Conv (s, u)  f = Flatten (d)  y = Gemm (f, v) }"""
FEW = """g (float[N,3,8,8] x) => (float[N,2] y) <float[4,3,3,3] w, float[144,2] v> {
  c = Conv (x, w)  s = Relu (c)  f = Flatten (s)  y = Gemm (f, v) }"""
TWO = """g (float[N,3,6,6] x) => (float[N,5] y, float[N,4,2,2] z) <float[4,3,3,3] w, float[4,4,3,3] u, float[4,5] v> {
  c = Conv (x, w)  s = Relu (c)  p = GlobalAveragePool (s)  f = Flatten (p)  y = Gemm (f, v)  z = Conv (s, u) }"""
BENT = """g (float[N,3,6,6] x) => (float[N,40] y) <float[4,3,3,3] w, float[64,40] v> {
  c = Conv (x, w)  s = Relu (c)  t = Tanh (s)  f = Flatten (t)  y = Gemm (f, v) }"""
BAKED = """g (float[1,3,6,6] x) => (float[1,40] y) <float[4,3,3,3] w, float[64,40] v, int64[2] one = {1,64}> {
  c = Conv (x, w)  s = Relu (c)  t = Tanh (s)  f = Reshape (t, one)  y = MatMul (f, v) }"""
UNMAPPED = """g (float[1,3,6,6] x) => (float[1,K] y) <float[4,3,3,3] w, int64[1] flat = {-1}, int64[2] one = {1,-1},
  float[1] zero = {0}, float[1] two = {2}> {
  c = Conv (x, w)  s = Relu (c)  t = Tanh (s)  m = ReduceMax <keepdims = 0> (t)  r = Reshape (m, flat)
  n = Mul (r, zero)  k = Add (n, two)  i = Cast <to = 7> (k)  a = Reshape (t, one)  y, at = TopK (a, i) }"""
AFFINE = {"pooled": POOLED, "pooled, channels last": POOLED_LAST, "columns": SPREAD, "rows": FEW, "two outputs": TWO}


def feeds_of(graph: str, samples: int) -> dict[str, Any]:
    sizes = {POOLED_LAST: (8, 8, 3), FEW: (3, 8, 8)}.get(graph, (3, 6, 6))
    return {"x": normal(samples, *sizes)}


def scene_of(graph: str, samples: int, device: torch.device | None = None) -> Scene:
    model, feeds = weighted(graph), feeds_of(graph, samples)
    stop = stop_at(model, "s")
    ((pieces, recorded),) = record(model, [feeds], [stop], None, device)
    return Scene(model, pieces, recorded, stop, torch.device("cpu"), None)


# Affine tails


@pytest.mark.parametrize("graph", AFFINE.values(), ids=AFFINE)
def test_the_matrix_is_the_tail(graph: str) -> None:
    """Against onnxruntime: z0 + J f, rows of J, J' w, for a batch and for some of its samples."""
    scene = scene_of(graph, 3)
    tail = scene.collapsed
    assert tail is not None
    f = torch.from_numpy(normal(*scene.onnx.shape, seed=1))
    expected = scene.onnx.outputs(f.numpy())
    weights = torch.from_numpy(normal(3, tail.size, seed=2))
    by_passes = tail.gradient(weights)
    for _ in range(2):
        found = tail.outputs(f)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name].numpy(), value, atol=2e-5 * np.abs(value).max())
        some = tail.outputs(f[[2, 0]], torch.tensor([2, 0]))
        for name, value in expected.items():
            np.testing.assert_allclose(some[name].numpy(), value[[2, 0]], atol=2e-5 * np.abs(value).max())
        assert tail.jacobian.shape == (3, tail.size, tail.cells)  # from here on products take the place of passes
    torch.testing.assert_close(tail.gradient(weights), by_passes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("graph", AFFINE.values(), ids=AFFINE)
def test_what_is_read_on_the_host_is_the_tail_too(graph: str, samples: int) -> None:
    """With one sample and a pool it is computed without torch: z0 + J f against onnxruntime, rows of J against J."""
    scene = scene_of(graph, samples)
    tail = scene.collapsed
    assert tail is not None
    assert tail.lean == (tail.pooled and samples == 1)
    f = normal(*scene.onnx.shape, seed=3)
    for name, value in scene.onnx.outputs(f).items():
        np.testing.assert_allclose(tail.at(f)[name], value, atol=2e-5 * np.abs(value).max())
    places = np.tile([tail.size - 1, 0], (samples, 1))
    weights = normal(samples, 2, seed=4)
    found = tail.combined(places, weights)
    expected = np.einsum("nk,nkc->nc", weights, tail.jacobian.numpy()[np.arange(samples)[:, None], places])
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(tail.zero, tail.origin.numpy(), rtol=1e-6)


def test_a_pool_is_known_for_one_and_each_way_is_used() -> None:
    made = {name: scene_of(graph, 2).collapsed for name, graph in AFFINE.items()}
    assert {name: tail is not None and tail._rest is not None for name, tail in made.items()} == {
        "pooled": True, "pooled, channels last": True, "columns": False, "rows": False, "two outputs": False,
    }  # fmt: skip
    rows, columns = made["rows"], made["columns"]
    assert rows is not None
    assert columns is not None
    assert (rows.passes, columns.passes) == (rows.size, columns.cells)


@pytest.mark.parametrize("graph", AFFINE.values(), ids=AFFINE)
@pytest.mark.parametrize("constraint", ["l2", "l2-nonneg"])
def test_the_exact_answer_is_where_descent_ends(graph: str, constraint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = solvers.Lbfgs(loss_tolerance=1e-9, max_evaluations=1000)
    monkeypatch.setitem(solvers.SOLVERS, "lbfgs", long)  # as ours it stops where little is left to gain
    model, feeds = weighted(graph), feeds_of(graph, 2)
    target = {} if graph is TWO else {"target": 1}
    for options in ({}, target):
        found = caf.attend(model, feeds, at="s", constraint=constraint, **options)
        assert found.solver == "exact"
        assert found.certificate is not None
        assert found.certificate.kinds == (found.certificate.kind,) * 2 == ("global",) * 2
        assert (found.certificate.residuals <= 1e-6).all()
        assert found.proof.ok
        assert constraint == "l2" or (found.filter >= 0).all()
        norms = np.linalg.norm(found.filter.reshape(2, -1), axis=1)
        np.testing.assert_allclose(norms, found.radius * np.sqrt(found.filter[0].size), rtol=1e-5)
        descended = caf.attend(model, feeds, at="s", constraint=constraint, solver="lbfgs", **options)
        assert (found.loss <= descended.loss + 1e-5 * np.abs(descended.loss) + 1e-5).all()
        np.testing.assert_allclose(found.loss, descended.loss, rtol=2e-3, atol=1e-5)
        assert descended.certificate is None


def test_a_softmax_filter_on_an_affine_tail_tends_to_one_cell() -> None:
    model, feeds = weighted(POOLED), feeds_of(POOLED, 1)
    found = caf.attend(model, feeds, at="s", target=2, constraint="softmax", radius=0.5)
    assert found.solver == "exact"
    assert int(np.count_nonzero(found.filter)) == 1
    assert found.filter.max() == pytest.approx(0.5 * 16)
    descended = caf.attend(model, feeds, at="s", target=2, constraint="softmax", radius=0.5, solver="lbfgs")
    assert descended.filter.argmax() == found.filter.argmax()
    assert found.loss[0] <= descended.loss[0] + 1e-6
    oblivious = caf.attend(model, feeds, at="s", constraint="softmax", radius=0.5)
    assert (oblivious.solver, oblivious.proof.ok) == ("lbfgs", True)
    assert oblivious.filter.sum() == pytest.approx(0.5 * 16, rel=1e-5)


def test_products_alone_where_the_matrix_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [caf.attend(weighted(SPREAD), feeds_of(SPREAD, 2), at="s", constraint=c) for c in ("l2", "l2-nonneg")]
    monkeypatch.setattr(collapsing, "LARGEST", 8)
    monkeypatch.setattr(Collapsed, "_by_columns", None)
    for dense, constraint in zip(expected, ("l2", "l2-nonneg"), strict=True):
        found = caf.attend(weighted(SPREAD), feeds_of(SPREAD, 2), at="s", constraint=constraint)
        assert found.solver == "exact"
        np.testing.assert_allclose(found.loss, dense.loss, rtol=1e-3)


def test_the_exact_solver_refuses_what_is_not_affine_by_name() -> None:
    with pytest.raises(caf.SolverError, match=r"Tanh"):
        caf.attend(weighted(BENT), feeds_of(BENT, 1), at="s", solver="exact")
    half = weighted("""g (float16[N,3,6,6] x) => (float[N,5] y) <float[3,5] v> {
      s = Relu (x)  c = Cast <to = 1> (s)  p = GlobalAveragePool (c)  f = Flatten (p)  y = Gemm (f, v) }""")
    with pytest.raises(caf.SolverError, match="half-precision"):
        caf.attend(half, {"x": normal(1, 3, 6, 6, dtype="float16")}, at="s", solver="exact")
    with pytest.raises(caf.SolverError, match=r"no closed form for 'outputs' with 'softmax'"):
        caf.attend(weighted(POOLED), feeds_of(POOLED, 1), at="s", solver="exact", constraint="softmax")


def test_the_graphs_word_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops, "affine_obstacle", lambda *_: None)
    found = caf.attend(weighted(BENT), feeds_of(BENT, 1), at="s")
    assert (found.solver, found.certificate) == ("slope", None)
    with pytest.raises(caf.SolverError, match="not by its numbers"):
        caf.attend(weighted(BENT), feeds_of(BENT, 1), at="s", solver="exact")


def test_an_affine_tail_that_does_not_depend_on_the_filter_is_dead() -> None:
    feeds = {"x": -np.abs(normal(1, 3, 6, 6))}
    model = weighted("""g (float[N,3,6,6] x) => (float[N,5] y) <float[3,5] v, float[5] b> {
      s = Relu (x)  p = GlobalAveragePool (s)  f = Flatten (p)  y = Gemm (f, v, b) }""")
    for options in ({}, {"target": 1}):
        with pytest.raises(caf.SolverError, match="dead"):
            caf.attend(model, feeds, at="s", **options)


# Questions in common


def test_many_questions_take_one_run_of_the_head_and_one_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = weighted(BENT), feeds_of(BENT, 3)
    queries = [caf.Query(at, target=k, radius=r) for at in ("s", "t") for k in (None, 1, 2) for r in (0.3, 0.5)]
    runs: list[tuple[str, ...]] = []
    real = runtime.run

    def counted(model: caf.Model, feeds: Any, **options: Any) -> Any:
        runs.append(tuple(o.name for o in model.outputs))
        return real(model, feeds, **options)

    conversions: list[Any] = []

    def converted(model: caf.Model, *rest: Any, **options: Any) -> Any:
        conversions.append(model)
        return to_torch(model, *rest, **options)

    monkeypatch.setattr(runtime, "run", counted)
    monkeypatch.setattr(filtering, "to_torch", converted)
    found = caf.attend_many(model, feeds, queries)
    assert runs.count(("s", "t")) == 1
    assert len(conversions) == 2
    before = len(runs)
    again = caf.attend_many(model, feeds, queries)
    # The head, and each answer's proof: that the tail is not dead, the searches have shown by themselves.
    assert len(runs) - before == 1 + len(queries)
    assert len(conversions) == 2
    for query, one, other in zip(queries, found, again, strict=True):
        np.testing.assert_array_equal(one.filter, other.filter)
        alone = caf.attend(weighted(BENT), feeds, at=query.at, target=query.target, radius=query.radius)
        np.testing.assert_allclose(one.loss, alone.loss, rtol=1e-5)
    with pytest.raises(caf.InputError, match="no question"):
        caf.attend_many(model, feeds, [])


def test_on_an_affine_tail_further_questions_do_not_run_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = weighted(SPREAD), feeds_of(SPREAD, 1)
    passes: list[int] = []
    real = Filtered.__call__
    caf.attend(model, feeds, at="s")

    def counted(self: Filtered, *rest: Any) -> Any:
        passes.append(1)
        return real(self, *rest)

    monkeypatch.setattr(Filtered, "__call__", counted)
    caf.attend(model, feeds, at="s")
    one = len(passes)
    caf.attend_many(
        model, feeds, [caf.Query("s"), *(caf.Query("s", target=k) for k in range(5)), caf.Query("s", radius=0.2)]
    )
    assert len(passes) - one == one


# Batches


@pytest.mark.parametrize(
    ("graph", "way"), [(BENT, "together"), (BAKED, "vmap"), (UNMAPPED, "loop")], ids=["together", "vmap", "loop"]
)
@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_a_batch_goes_the_way_that_gives_what_singles_give(graph: str, way: str, solver: str) -> None:
    model, feeds = weighted(graph), feeds_of(graph, 4)
    found = caf.attend(model, feeds, at="s", solver=solver)
    stop = stop_at(model, "s", fed={"x": (4, 3, 6, 6)})
    assert stop.opened.cache.get("way", lambda: [None]) == [way]
    assert (ONE_BY_ONE in found.notes) == (way == "loop")
    assert found.proof.ok
    for n in range(4):
        alone = caf.attend(model, {"x": feeds["x"][n : n + 1]}, at="s", solver=solver)
        np.testing.assert_allclose(found.filter[n], alone.filter[0], atol=2e-3)
        np.testing.assert_allclose(found.loss[n], alone.loss[0], rtol=1e-4)


def test_a_model_of_fixed_batch_is_proved_as_a_whole() -> None:
    model, feeds = weighted(BAKED), feeds_of(BAKED, 3)
    found = caf.attend(model, feeds, at="s", proof="model", ort_level="all")
    assert found.proof.ok
    assert found.deployed is not None
    assert found.deployed.ok
    with pytest.raises(caf.InputError, match="targets"):
        caf.attend(model, feeds, at="s", target=[1, 2])


def test_activations_may_stay_where_onnxruntime_made_them() -> None:
    """The way of a GPU, on the CPU: outputs bound by onnxruntime, read by torch and bound again, none as an array."""
    for graph in (BENT, POOLED):
        scene = scene_of(graph, 2, torch.device("cpu"))
        assert isinstance(scene.onnx.held["s"], torch.Tensor)
        found = Explanation(scene, plan(), None).attention()
        expected = caf.attend(weighted(graph), feeds_of(graph, 2), at="s")
        np.testing.assert_allclose(found.filter, expected.filter, atol=1e-5)
        assert found.proof.ok


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu() -> None:
    for graph in (BENT, POOLED):
        found = caf.attend(weighted(graph), feeds_of(graph, 2), at="s", device="cuda")
        expected = caf.attend(weighted(graph), feeds_of(graph, 2), at="s")
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-3)
        assert found.proof.ok


def test_batches_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from l2caf_onnx.explain import batches as dividing

    model, feeds = weighted(BENT), feeds_of(BENT, 10)
    monkeypatch.setattr(dividing, "_free_memory", lambda: 2**40)
    assert at_once(model, feeds, 10) == 32
    monkeypatch.setattr(dividing, "_free_memory", lambda: 24 * 4 * (108 + 64 * 3 + 64 + 40) * 3)
    assert at_once(model, feeds, 10) == 3
    total, parts = batches(model, feeds, None)
    assert (total, [p.samples for p in parts]) == (10, [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)])
    monkeypatch.setattr(dividing, "_free_memory", lambda: 0)
    assert at_once(model, feeds, 10) == 1


def test_a_question_is_filled_in_once_and_refused_each_time() -> None:
    assert planned(target=1) is planned(target=1)
    assert planned(target=1) is not planned(target=2)
    assert planned(reference={"x": 1}).reference == {"x": 1}  # no key
    for _ in range(2):
        with pytest.raises(caf.InputError, match="no class index"):
            planned(target=True)

    def loss(filtered: object, normal: object, target: object) -> None: ...

    assert planned(objective=loss) is not planned(objective=loss)
