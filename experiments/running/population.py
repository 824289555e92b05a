"""Several trainings as one program: members that differ only in the seed and in numbers of the recipe.

Every array of the state has a leading axis with one entry for each member. The members are divided over the devices.
Those of one device step together as one batch of members (`vmap`), or each by its own step in the same program
(`unroll`), which takes as many times as long to compile. XLA for CPU convolves slowly if each member has its own
kernel, and computes gradients of convolutions even more slowly inside a loop; on CPU, `unroll` is therefore the default
for networks with convolutions.

The results are ordinary runs: each member has its workdir, its data in its own order, its rows, and its checkpoints, as
if trained alone, with the same numbers up to rounding.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from diffusion_jax import models, training
from diffusion_jax.errors import RunError, UserError
from experiments.building import conditions
from experiments.building.restoring import describe_run, open_checkpoints
from experiments.building.wiring import Experiment
from experiments.ground import workdir
from experiments.ground.cli import flatten
from experiments.ground.progress import ProgressBar
from experiments.ground.writers import create_writer
from experiments.running.loop import StopSignal, due

NUMBERS = (
    *(f"optimizer.{name}" for name in ("learning_rate", "b1", "b2", "weight_decay")),
    "train.conditioning_dropout",
)
WEIGHTS = "objective.weighting"
"""Fields, and a group of fields, whose floats may differ between members: they are arguments of the program, like the
seed. Averages of several lengths, and ways to sample, need no population: one training has them all."""
_AXIS = "population"


def numbers_of(config: ConfigDict) -> dict[str, float]:
    """The numbers that members may differ in, by name."""
    return {
        name: value
        for name, value in flatten(config).items()
        if isinstance(value, float) and (name in NUMBERS or name.startswith(f"{WEIGHTS}."))
    }


def program(config: ConfigDict) -> str:
    """A hash that is equal for trainings which can be members of one population."""
    return workdir.digest(config, without=("seed", *numbers_of(config)))


def populations(trainings: Mapping[str, ConfigDict], most: int) -> list[list[str]]:
    """The names of trainings in groups of at most `most` that share one program; those that start from a model are
    alone, since members have no frozen parameters."""
    if most == 1:
        return [[name] for name in trainings]
    alike: dict[str, list[str]] = {}
    for name, config in trainings.items():
        alike.setdefault(name if config.init.folder else program(config), []).append(name)
    return [names[i : i + most] for names in alike.values() for i in range(0, len(names), most)]


class Population:
    """Trainings as one program.

    Args:
      configs: configs of the members.
      directories: their workdirs.
      how: "vmap" or "unroll"; "" chooses.

    Raises:
      UserError: the configs differ in more than the seed and their numbers, or one cannot be trained in this way.
    """

    def __init__(self, configs: Sequence[ConfigDict], directories: Sequence[Path], how: str = ""):
        if len({program(config) for config in configs}) != 1:
            raise UserError(
                "the members of a population differ in the seed and in floats of "
                f"{', '.join((*NUMBERS, WEIGHTS))} alone; these differ in more"
            )
        if any(config.init.folder for config in configs):
            raise UserError(
                "a training that starts from a model (init.folder) cannot be a member of a population: train each by "
                "itself, with experiments.train, or --population=1 of experiments.ablate"
            )
        self.members = [Experiment(c, directory=d) for c, d in zip(configs, directories, strict=True)]
        self.directories, self.base, self.config = list(directories), self.members[0], configs[0]
        for member in self.members:
            member.check()
        if self.base.teacher is not None:
            raise UserError("a training with a teacher cannot be a member of a population")
        if self.base.frozen_groups:
            raise UserError("a training with frozen parameters cannot be a member of a population: train.trained")
        if self.base.objective.reads_lpips:
            raise UserError("a training by the distance lpips cannot be a member of a population")
        if self.config.data.buckets:
            raise UserError("a training with data.buckets cannot be a member of a population: it has several programs")
        if self.config.checkpoint.keep_last < 2:
            raise UserError(
                "members save in turn: set checkpoint.keep_last to 2 at least, so that all have one in common"
            )
        slow = jax.default_backend() == "cpu" and self.members[0].network.is_convolutional
        self.how = how or ("unroll" if slow else "vmap")
        devices = [n for n in range(1, jax.local_device_count() + 1) if len(configs) % n == 0][-1]
        self.mesh = Mesh(np.array(jax.local_devices()[:devices]), (_AXIS,))
        self.sharding = NamedSharding(self.mesh, PartitionSpec(_AXIS))
        self.seeds = self._placed(np.array([config.seed for config in configs], np.uint32))
        by_name = {name: [numbers_of(config)[name] for config in configs] for name in numbers_of(self.config)}
        self.numbers = self._placed(
            {name: np.array(values, np.float32) for name, values in by_name.items() if len(set(values)) > 1}
        )

    def _placed(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.device_put(x, self.sharding), tree)

    def over_members(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Turn a function of one member's arguments into one of all members' arguments."""

        def local(*arguments: Any) -> Any:
            if self.how == "vmap":
                return jax.vmap(function)(*arguments)
            count = len(jax.tree.leaves(arguments)[0])
            results = [function(*jax.tree.map(lambda x, i=i: x[i], arguments)) for i in range(count)]
            return jax.tree.map(lambda *values: jnp.stack(values), *results)

        spec = PartitionSpec(_AXIS)
        return jax.shard_map(local, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False)

    def step(self) -> Any:
        """(states, batches, seeds, numbers) -> (states, metrics), jitted; the states are donated."""

        def one(state: Any, batch: Any, seed: jax.Array, numbers: dict[str, jax.Array]) -> Any:
            return self.base.with_numbers(numbers).train_step(seed)(state, batch)

        return jax.jit(self.over_members(one), donate_argnums=0)

    def run(self, stop: StopSignal) -> int:
        """Train to the last step, or until stopped; returns the exit code."""
        with contextlib.ExitStack() as stack:
            for member, directory in zip(self.members, self.directories, strict=True):
                directory.mkdir(parents=True, exist_ok=True)
                stack.enter_context(workdir.lock(directory))
                workdir.claim(directory, member.config, member.info, kept=conditions.kept(member.text))
                describe_run(member, directory)
                workdir.write_environment(directory, num_parameters=models.count_parameters(member.network))
            self.writers = [
                stack.enter_context(contextlib.closing(create_writer(directory, primary=True)))
                for directory in self.directories
            ]
            self.checkpointers = [open_checkpoints(*pair) for pair in zip(self.members, self.directories, strict=True)]
            for checkpointer in self.checkpointers:
                stack.callback(checkpointer.close)
            states, start, self.window = self._begin()
            for writer in self.writers:
                writer.resume(start)
            if start < self.config.train.steps:
                self._loop(states, start, stop)
            else:
                print(f"all {len(self.members)} members are finished", flush=True)
        return 0

    def _begin(self) -> tuple[Any, int, list[Any]]:
        """The states to start from, their step, and the metrics not yet logged."""
        common = set.intersection(*(set(checkpointer.steps()) for checkpointer in self.checkpointers))
        step = max(common, default=0)
        for checkpointer in self.checkpointers:
            for moved in checkpointer.set_aside_after(step):
                print(f"set aside {moved}, which not all members have", flush=True)
        if not common:
            init = jax.jit(self.over_members(self.base.init_state))
            return init(self.seeds), 0, []
        found = []
        for member, checkpointer in zip(self.members, self.checkpointers, strict=True):
            workdir.require_same_config(checkpointer.read_record(step)["config"], member.config, checkpointer.directory)
            read, record = checkpointer.restore(step, member.abstract_state.saved)
            found.append((training.TrainState(**read), record))
        print(f"resuming {len(found)} members at step {step}", flush=True)
        states = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *[s for s, _ in found])
        rows = zip(*(record["window"] for _, record in found), strict=True)
        window = [{name: np.array([row[name] for row in together]) for name in together[0]} for together in rows]
        return self._placed(states), step, window

    def _loop(self, states: Any, start: int, stop: StopSignal) -> None:
        config = self.config
        batches = [member.pipeline.batches(start_step=start) for member in self.members]
        began = time.perf_counter()
        abstract = self._stack([member.abstract_batch(config.train.batch_size) for member in self.members])
        step_fn = self.step().lower(states, self._placed(abstract), self.seeds, self.numbers).compile()
        for writer in self.writers:
            writer.write_timings(start, {"compile_seconds": time.perf_counter() - began})
        validate = self._validation() if config.log.validate_every else None
        stop.arm()
        with ProgressBar(total=config.train.steps, start=start, description=f"train {len(self.members)}") as progress:
            clock = (time.perf_counter(), start)
            for step in range(start + 1, config.train.steps + 1):
                batch = self._placed(self._stack([next(one) for one in batches]))
                states, metrics = step_fn(states, batch, self.seeds, self.numbers)
                self.window.append(metrics)
                last, stops = step == config.train.steps, stop.received is not None
                logs = last or due(step, config.log.every)
                saves = last or stops or due(step, config.checkpoint.every)
                if logs or saves:
                    self._fetch(states)
                if logs:
                    self._log(step, clock, progress)
                measured = [{} for _ in self.members]
                if validate and (last or due(step, config.log.validate_every)):
                    measured = validate(step, states)
                if saves:
                    self._save(step, states, measured)
                if logs:
                    clock = (time.perf_counter(), step)
                if stops and not last:
                    print(f"stopped by {stop.received.name} at step {step}, which is saved", flush=True)
                    return

    @staticmethod
    def _stack(trees: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    def _fetch(self, states: Any) -> None:
        """Copy the metrics of the window to the host.

        Raises:
          RunError: a member's loss or gradient was not finite.
        """
        self.window = jax.device_get(self.window)
        for directory, bad in zip(self.directories, jax.device_get(states.nonfinite_step), strict=True):
            if bad >= 0:
                raise RunError(
                    f"loss or gradient of {directory} is not finite at step {bad}; train it by itself to see"
                )

    def _log(self, step: int, clock: tuple[float, int], progress: ProgressBar) -> None:
        seconds, images = time.perf_counter() - clock[0], (step - clock[1]) * self.config.train.batch_size
        for i, writer in enumerate(self.writers):
            row = {name: float(np.mean([float(m[name][i]) for m in self.window])) for name in self.window[0]}
            writer.write_scalars(step, row)
            # A member had its share of the machine's time.
            writer.write_timings(step, {"images_per_second": len(self.members) * images / seconds})
        loss = float(np.mean([np.mean(metrics["loss"]) for metrics in self.window]))
        progress.update(step, loss, len(self.members) * images / seconds)
        self.window = []

    def _save(self, step: int, states: Any, measured: Sequence[dict[str, float]]) -> None:
        for i, (member, checkpointer) in enumerate(zip(self.members, self.checkpointers, strict=True)):
            self.writers[i].flush()
            record = {
                "config": workdir.to_json(member.config),
                "position": step * self.config.train.batch_size,
                "window": [{name: float(value[i]) for name, value in metrics.items()} for metrics in self.window],
                "branch": None,
            }
            checkpointer.save(step, self.member_state(states, i).saved, record, measured[i])

    def member_state(self, states: Any, index: int) -> Any:
        """The canonical state of one member."""
        return jax.tree.map(
            lambda x, like: jax.device_put(x[index], like.sharding), states, self.members[index].abstract_state
        )

    def _validation(self) -> Callable[[int, Any], list[dict[str, float]]]:
        """(step, states) -> the validation loss of every member, which is also logged."""
        base, config = self.base, self.config
        size = base.validation_size

        def one(params: Any, state: Any, batch: Any, seed: jax.Array, numbers: Any, first: jax.Array) -> jax.Array:
            step = training.make_validation_step(base.with_numbers(numbers).trainable, seed=seed)
            return step(params, state, batch, first, size)["loss"]

        run = jax.jit(self.over_members(one))

        def validate(step: int, states: Any) -> list[dict[str, float]]:
            params = states.evaluation_params(config.sampling.ema)
            context = states.replace(params={}, opt_state=(), ema={})
            losses = []
            batches: list[Iterator[Any]] = [m.validation_pipeline.batches(start_step=0) for m in self.members]
            for first in range(0, size, base.validation_batch):
                batch = self._placed(self._stack([next(member) for member in batches]))
                firsts = self._placed(np.full(len(self.members), first, np.int32))
                losses.append(run(params, context, batch, self.seeds, self.numbers, firsts))
            found = np.mean(jax.device_get(losses), axis=0)
            results = [{"validation_loss": float(value)} for value in found]
            for writer, result in zip(self.writers, results, strict=True):
                writer.write_scalars(step, result)
            return results

        return validate
