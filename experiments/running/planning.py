"""The needs and costs of a config on a TPU slice, found by compiling its train step and sampler for it.

A strategy is a word for `parallel`, `model.remat` and `train.accumulation` together: pieces joined by "+",

    data            every device holds everything and works on its own examples
    fsdp, fsdp:N    parameters, optimizer and averages sharded over all devices, or over groups of N
    tensor:N        wide layers of one example over N devices
    context:N       tokens of one example over N devices
    remat, remat:K  the backward pass recomputes blocks: model.remat = "full", or K
    accumulate:N    N microbatches to a step

A strategy switches off everything that it does not name: `fsdp` alone recomputes nothing.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.models import count_flops, example_inputs, parameter_shapes
from diffusion_jax.parallel.hlo import Collective, Program
from diffusion_jax.parallel.topology import (
    CHIPS,
    larger_topologies,
    needed_memory,
    number_of_slices,
    parse_topology,
    topology_devices,
)
from diffusion_jax.registry import unknown_name
from experiments.building.kinds import plan_experiment
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation
from experiments.ground import workdir

AS_CONFIGURED = "as configured"
_NOT_OF_PROGRAMS = ("seed", "log.", "checkpoint.", "evaluation.", "data.num_workers", "data.data_dir")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One program, compiled for one slice. Bytes, operations and traffic are for one device.

    If the compiler refuses a program for lack of memory, its peak is the number in the message, a lower bound, and the
    other numbers are zero.

    Attributes:
      program: "train step" or "sampler".
      strategy: its strategy.
      topology: the slice.
      chips, devices: numbers in the slice; JAX sees two devices per chip for some kinds.
      mesh: lengths of the mesh's axes.
      batch_size: images in one run of the program.
      memory: bytes, see `needed_memory`.
      limit: bytes of main memory that a device has.
      model_flops: operations that the network needs for one image: one forward pass for each evaluation, three for a
        training example (backward is two more); recomputation is not among them.
      compiled_flops: matrix products and convolutions of the compiled program for one image.
      traffic: bytes to and from main memory in one run, estimated from the compiled program.
      collectives: data sent between the devices of a slice, by kind.
      sent_between_slices: bytes that a device must send at least over the data centre's network.
      unknown_loops: loops whose iterations are unknown and that are counted once.
      seconds: time of one run by the roofline, an estimate and a lower bound: the longest of the chip's published times
        for computation, main memory, interconnect and, between slices, network, as if they overlapped perfectly.
      bound: which of these is the longest.
      steps: runs in the config's full schedule; 0 for the sampler.
      trace_seconds, compile_seconds: time needed on this machine.
    """

    program: str
    strategy: str
    topology: str
    chips: int
    devices: int
    mesh: dict[str, int]
    batch_size: int
    memory: dict[str, int]
    limit: int
    model_flops: float
    compiled_flops: float
    traffic: int
    collectives: dict[str, Collective]
    sent_between_slices: int
    unknown_loops: int
    seconds: float
    bound: str
    steps: int
    trace_seconds: float
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.memory["peak"] <= self.limit

    @property
    def intensity(self) -> float:
        """Operations per byte of traffic with main memory."""
        return self.compiled_flops * self.batch_size / self.devices / max(self.traffic, 1)

    @property
    def utilization(self) -> float:
        """The network's own operations as a share of the chip's peak, at the roofline."""
        kind = CHIPS[self.topology.partition(":")[0]]
        return self.model_flops * self.batch_size / (self.seconds * kind.flops * self.chips) if self.seconds else 0.0

    @property
    def days(self) -> float:
        """Days for the full schedule, at the roofline."""
        return self.steps * self.seconds / 86_400

    @property
    def chip_hours(self) -> float:
        """Chip-hours for the full schedule, at the roofline."""
        return 24 * self.days * self.chips

    def to_json(self) -> dict[str, Any]:
        """All fields and the numbers derived from them."""
        derived = ("fits", "intensity", "utilization", "days", "chip_hours")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in derived}}


def digest(config: ConfigDict) -> str:
    """A hash of everything that a config's programs depend on: equal hashes give equal plans."""
    return workdir.hash_without(config, _NOT_OF_PROGRAMS)


def configured(config: ConfigDict, strategy: str) -> ConfigDict:
    """A copy of a config with a strategy.

    Raises:
      UserError: the strategy has an unknown piece.
    """
    result = config.copy_and_resolve_references()
    if strategy == AS_CONFIGURED:
        return result
    with result.unlocked():
        result.parallel.update(strategy="jit", data=-1, fsdp=1, tensor=1, context=1)
        result.train.accumulation = 1
        remat = _remat_group(result)
        if "remat" in remat:
            remat.remat = "none"
        for piece in strategy.split("+"):
            _apply(result, piece, strategy)
    return result


def _apply(config: ConfigDict, piece: str, strategy: str) -> None:
    name, _, value = piece.partition(":")
    known = ["data", "fsdp", "fsdp:N", "tensor:N", "context:N", "remat", "remat:full", "remat:dots", "accumulate:N"]
    number = int(value) if value.isdigit() and int(value) else None
    if piece == "data":
        return
    if piece == "fsdp":
        config.parallel.update(data=1, fsdp=-1)
    elif name in ("fsdp", "tensor", "context") and number:
        config.parallel[name] = number
    elif name == "accumulate" and number:
        config.train.accumulation = number
    elif name == "remat" and value in ("", "full", "dots", "none"):
        _remat_group(config).remat = value or "full"
    else:
        raise UserError(unknown_name(f"piece of strategy {strategy!r}", piece, known))


def _remat_group(config: ConfigDict) -> ConfigDict:
    """The group that says what the network's blocks recompute: the config's own model, or the model on disk."""
    return config.init if config.init.folder else config.model


def train_plan(config: ConfigDict, topology: str, strategy: str = AS_CONFIGURED) -> Plan:
    """Compile the train step of a config.

    Raises:
      UserError: the config, the topology or the strategy is wrong, or they do not fit each other.
    """
    experiment = plan_experiment(configured(config, strategy), topology_devices(topology))
    train = experiment.config.train
    experiment.layout.check_batch(train.batch_size, train.accumulation)
    batch = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=experiment.layout.batch_sharding)
        for name, value in experiment.abstract_batch(train.batch_size).items()
    }
    state = experiment.abstract_state
    step = experiment.layout.compile(experiment.train_step(), state)
    return _measure(
        experiment,
        lambda: step.lower(state, batch),
        program="train step",
        strategy=strategy,
        topology=topology,
        batch_size=train.batch_size,
        model_flops=3 * network_flops(experiment),
        steps=train.steps,
    )


def sample_plan(config: ConfigDict, topology: str, strategy: str = AS_CONFIGURED) -> Plan:
    """Compile the sampler of a config; errors are those of `train_plan`."""
    experiment = plan_experiment(configured(config, strategy), topology_devices(topology))
    make = evaluation.generator(experiment, stand_in=True)
    params = experiment.abstract_state.evaluation_params(experiment.known_ema(experiment.config.sampling.ema))
    return _measure(
        experiment,
        lambda: make.lower(params),
        program="sampler",
        strategy=strategy,
        topology=topology,
        batch_size=make.batch_size,
        model_flops=make.network_evaluations * network_flops(experiment),
        steps=0,
    )


def network_flops(experiment: Experiment) -> int:
    """Operations of the network for one image in a forward pass."""
    network = experiment.network
    inputs = jax.eval_shape(lambda: example_inputs(network))
    return count_flops(
        lambda params, *args: network.apply({"params": params}, *args), parameter_shapes(network), *inputs
    )


def _measure(experiment: Experiment, lower: Callable[[], Any], *, topology: str, **fields: Any) -> Plan:
    chip, chips = parse_topology(topology)
    devices = experiment.layout.mesh.size
    began = time.perf_counter()
    lowered = lower()
    traced = time.perf_counter()
    common = dict(
        topology=topology,
        chips=chips,
        devices=devices,
        mesh=dict(experiment.layout.mesh.shape),
        limit=int(chip.memory / chip.devices),
        trace_seconds=traced - began,
        **fields,
    )
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Plan(memory=refused_memory(str(error), common["limit"]), **common, **_NOT_COMPILED)
    ended = time.perf_counter()
    program = Program(compiled.as_text(), devices)
    times = {
        "computation": program.flops / (chip.flops / chip.devices),
        "main memory": program.traffic / (chip.bandwidth / chip.devices),
        "interconnect": program.sent_bytes / (chip.interconnect / chip.devices),
    }
    slices = number_of_slices(topology)
    between = sum(
        number * (slices - 1) // slices * (2 if kind == "ALL_REDUCE" else 1)
        for kind, number in program.given_to_network.items()
    )
    if between and chip.network:
        times["network between slices"] = between / (chip.network / chip.devices)
    bound = max(times, key=times.get)
    return Plan(
        memory=needed_memory(compiled),
        compiled_flops=program.flops * devices / fields["batch_size"],
        traffic=program.traffic,
        collectives=program.collectives,
        sent_between_slices=between,
        unknown_loops=program.unknown_loops,
        seconds=times[bound],
        bound=bound,
        compile_seconds=ended - traced,
        **common,
    )


_NOT_COMPILED = dict(
    compiled_flops=0.0,
    traffic=0,
    collectives={},
    sent_between_slices=0,
    unknown_loops=0,
    seconds=0.0,
    bound="",
    compile_seconds=0.0,
)


def refused_memory(message: str, limit: int) -> dict[str, int]:
    """The memory of a program that the compiler refuses for lack of memory, as far as its message says."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    found = re.findall(r"(?:Used |\()([\d.]+)([KMG])\)? (?:of|exceeds)", message)
    peak = max((int(float(number) * units[unit]) for number, unit in found), default=0)
    return {"arguments": 0, "outputs": 0, "aliased": 0, "temporaries": 0, "code": 0, "peak": max(peak, limit + 1)}


def mends(config: ConfigDict, failed: Plan) -> Iterator[tuple[str, str]]:
    """Changes to try when a plan does not fit, the smallest first: (strategy, topology)."""
    sharding = _words(config, failed)
    remat = "remat" if _knows_remat(config) else ""
    tried = [failed.strategy]
    for base in dict.fromkeys((sharding, "fsdp")):
        for extra in ("", remat):
            strategy = f"{base}+{extra}" if extra else base
            smaller = base == sharding and not extra  # the failed one, or one that needs more
            if not smaller and strategy not in tried:
                tried.append(strategy)
                yield strategy, failed.topology
    most = tried[-1]
    rows = failed.batch_size // math.prod(failed.mesh.get(axis, 1) for axis in ("data", "fsdp"))
    for parts in (2, 4, 8, 16):
        if rows % parts == 0:
            yield f"{most}+accumulate:{parts}", failed.topology
    for topology in larger_topologies(failed.topology):
        yield most, topology


def _words(config: ConfigDict, failed: Plan) -> str:
    """A plan's sharding as a strategy, without remat."""
    if failed.strategy != AS_CONFIGURED:
        axes = ("data", "fsdp", "tensor", "context")
        return "+".join(piece for piece in failed.strategy.split("+") if piece.partition(":")[0] in axes)
    if failed.mesh.get("fsdp") == failed.devices:
        return "fsdp"
    words = [f"{axis}:{failed.mesh[axis]}" for axis in ("fsdp", "tensor", "context") if failed.mesh.get(axis, 1) > 1]
    return "+".join(words) or "data"


def _knows_remat(config: ConfigDict) -> bool:
    try:
        _ = plan_experiment(configured(config, "data+remat")).network
    except UserError:
        return False
    return True


def fastest(plans: Sequence[Plan]) -> Plan | None:
    """The plan predicted to be the fastest of those that fit."""
    return min((plan for plan in plans if plan.fits), key=lambda plan: plan.seconds, default=None)
