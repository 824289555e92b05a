"""The costs of a compiled program, read from its text: multiplications, memory traffic, communication.

The compiler's cost analysis counts the body of a loop once, and the TPU's text, unlike the CPU's, states no trip
counts. Here the body is counted once for each iteration: `for (i = start; i < end; i += step)` is read from the loop's
condition, its body and the tuple that enters it. A loop of another form is counted once, and `Program.unknown_loops`
says how many of these there are.

    flops     of convolutions, which matrix products are on TPU, and dots: 2 per multiplication with addition that
              touches data (not padding or dilation)
    traffic   bytes between the chip's main memory and its core: operands and results of every operation at the level
              of the schedule, without those that the compiler placed in fast memory (`S(1)`). Of an operand that a
              fusion only slices, the slice
    collectives  by kind: how many a device takes part in, the bytes of their results, and the bytes that each device
              must send at least, in a ring of n devices: (n - 1) / n of what an all-gather returns or a
              reduce-scatter takes, twice that for an all-reduce
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence

from diffusion_jax.parallel.hlo_text import (
    Instruction,
    Shape,
    attention_kernel_flops,
    called_by,
    convolution_flops,
    dot_flops,
    element,
    group_size,
    is_attention_kernel,
    number_of,
    parse,
)

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota")
_CONTROL = ("while", "conditional", "call")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a program.

    Attributes:
      count: how many a device takes part in.
      result_bytes: the sum of their results on one device.
      sent_bytes: what one device must send at least.
    """

    count: int = 0
    result_bytes: int = 0
    sent_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program for one of its devices, from `compiled.as_text()`; loops are multiplied out."""

    text: str = dataclasses.field(repr=False)
    num_devices: int = 1

    @functools.cached_property
    def _computations(self) -> dict[str, dict[str, Instruction]]:
        return parse(self.text)

    @functools.cached_property
    def _times(self) -> dict[str, int]:
        """How often each computation of the schedule (not those inside fusions) runs."""
        times: collections.Counter[str] = collections.Counter()

        def run(name: str, count: int) -> None:
            times[name] += count
            for instruction in self._computations[name].values():
                if instruction.opcode == "while":
                    trips = self._trips(name, instruction) or 1
                    run(instruction.attribute(r"body=%?([\w.\-]+)"), count * trips)
                elif instruction.opcode in ("conditional", "call"):
                    for called in called_by(instruction):
                        run(called, count)

        run("ENTRY", 1)
        return dict(times)

    @functools.cached_property
    def unknown_loops(self) -> int:
        """Loops whose number of iterations cannot be read; they are counted once."""
        return sum(
            self._trips(name, instruction) is None
            for name in self._times
            for instruction in self._computations[name].values()
            if instruction.opcode == "while"
        )

    def _trips(self, inside: str, loop: Instruction) -> int | None:
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self._computations[loop.attribute(r"condition=%?([\w.\-]+)")]
        body_name = loop.attribute(r"body=%?([\w.\-]+)")
        body = self._computations[body_name]
        start_tuple = self._computations[inside].get(loop.operands[0])
        compare = list(condition.values())[-1]
        if compare.opcode != "compare" or compare.attribute(r"direction=(\w+)") != "LT":
            return None
        counter, limit = (condition.get(name) for name in compare.operands)
        index = element(counter)
        root = list(body.values())[-1]
        if index is None or start_tuple is None or start_tuple.opcode != "tuple" or root.opcode != "tuple":
            return None

        def at_start(position: int) -> int | None:
            return self._constant(inside, start_tuple.operands[position])

        end = number_of(limit) if element(limit) is None else at_start(element(limit))
        start = at_start(index)
        step = self._step(body_name, root.operands[index], index)
        if end is None or start is None or not step:
            return None
        return max(0, -(-(end - start) // step))

    def _constant(self, computation: str, name: str) -> int | None:
        """The value of a scalar constant, also behind a copy, or of a constant that a loop carries through
        unchanged."""
        inside = self._computations[computation]
        instruction = self._behind_copies(computation, name)
        index = element(instruction)
        if index is None or computation not in self._loops:
            return number_of(instruction)
        caller, loop = self._loops[computation]
        at_start, at_end = self._computations[caller].get(loop.operands[0]), list(inside.values())[-1]
        if at_start is None or at_start.opcode != "tuple" or at_end.opcode != "tuple":
            return None
        unchanged = element(self._behind_copies(computation, at_end.operands[index])) == index
        return self._constant(caller, at_start.operands[index]) if unchanged else None

    def _behind_copies(self, computation: str, name: str) -> Instruction | None:
        instruction = self._computations[computation].get(name)
        while instruction is not None and instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            instruction = self._computations[computation].get(instruction.operands[0])
        return instruction

    @functools.cached_property
    def _loops(self) -> dict[str, tuple[str, Instruction]]:
        """Body -> the computation that contains its loop, and the loop."""
        return {
            instruction.attribute(r"body=%?([\w.\-]+)"): (name, instruction)
            for name, computation in self._computations.items()
            for instruction in computation.values()
            if instruction.opcode == "while"
        }

    def _step(self, body_name: str, name: str, index: int) -> int | None:
        """The growth of the loop's counter, element `index` of its state, per iteration: `counter + constant`."""
        body = self._computations[body_name]
        added = 0
        while True:
            instruction = body.get(name)
            if instruction is None:
                return None
            if element(instruction) is not None:
                return added if element(instruction) == index else None
            if instruction.opcode in ("copy", "bitcast"):
                name = instruction.operands[0]
            elif instruction.opcode == "add":
                numbers = [self._constant(body_name, operand) for operand in instruction.operands]
                if all(number is None for number in numbers):
                    return None
                which = 0 if numbers[0] is not None else 1
                added += numbers[which]
                name = instruction.operands[1 - which]
            elif instruction.opcode == "fusion":  # a fusion of one addition
                inner = self._computations[called_by(instruction)[0]]
                result = list(inner.values())[-1]
                numbers = [number_of(inner.get(operand)) for operand in result.operands]
                if result.opcode != "add" or len(instruction.operands) != 1 or all(n is None for n in numbers):
                    return None
                added += next(number for number in numbers if number is not None)
                name = instruction.operands[0]
            else:
                return None

    def _scheduled(self) -> Iterator[tuple[str, Instruction, int]]:
        """Every operation of the schedule, the computation it is in, and how often it runs."""
        for name, count in self._times.items():
            for instruction in self._computations[name].values():
                yield name, instruction, count

    def _deep(self, computation: str, count: int) -> Iterator[tuple[str, Instruction, int]]:
        """Every operation of a computation, including those inside fusions."""
        for instruction in self._computations[computation].values():
            yield computation, instruction, count
            if instruction.opcode not in _CONTROL:
                for called in called_by(instruction):
                    yield from self._deep(called, count)

    def _all(self) -> Iterator[tuple[str, Instruction, int]]:
        for name, count in self._times.items():
            yield from self._deep(name, count)

    @functools.cached_property
    def flops(self) -> int:
        """Operations of convolutions, dots and attention kernels on one device."""
        total = 0
        for name, instruction, count in self._all():
            if instruction.opcode in ("convolution", "dot"):
                left, right = (self._computations[name][operand].shapes[0].dims for operand in instruction.operands[:2])
                of_one = convolution_flops if instruction.opcode == "convolution" else dot_flops
                total += count * of_one(instruction, left, right)
            elif is_attention_kernel(instruction):
                query, key, _ = (self._computations[name][operand] for operand in instruction.operands[-3:])
                total += count * attention_kernel_flops(query.shapes[0].dims, key.shapes[0].dims)
        return total

    @functools.cached_property
    def traffic(self) -> int:
        """Bytes that one device reads from and writes to its main memory."""
        total = 0
        for name, instruction, count in self._scheduled():
            if instruction.opcode in (*_FREE, *_CONTROL) or instruction.opcode.endswith("-done"):
                continue
            total += count * (self._bytes_read(name, instruction) + self._bytes_written(name, instruction))
        return total

    def _bytes_read(self, inside: str, instruction: Instruction) -> int:
        shapes = [self._computations[inside][operand].shapes for operand in instruction.operands]
        if instruction.opcode in ("dynamic-slice", "gather", "slice", "slice-start"):
            taken = instruction.shapes[instruction.opcode == "slice-start"]  # of a start, (source, result, ...)
            return 0 if shapes[0][0].fast else taken.bytes
        if instruction.opcode == "dynamic-update-slice":
            return _bytes(shapes[1])
        if instruction.opcode != "fusion":
            return sum(map(_bytes, shapes))
        return sum(
            self._bytes_used(instruction, position, _bytes(shape)) for position, shape in enumerate(shapes) if shape
        )

    def _bytes_used(self, fusion: Instruction, position: int, whole: int) -> int:
        """Bytes that a fusion reads of the operand at a position: the bytes of its slices, or `whole`, all of them."""
        inner = self._computations[called_by(fusion)[0]]
        parameter = next(i for i in inner.values() if i.opcode == "parameter" and i.argument == str(position))
        names, used = [parameter.name], 0
        for instruction in inner.values():  # in an order in which operands come first
            if not set(names) & set(instruction.operands):
                continue
            if instruction.opcode == "bitcast":
                names.append(instruction.name)
            elif instruction.opcode in ("dynamic-slice", "slice", "gather"):
                used += sum(shape.bytes for shape in instruction.shapes)
            elif instruction.opcode == "fusion":
                places = [i for i, operand in enumerate(instruction.operands) if operand in names]
                used += sum(self._bytes_used(instruction, place, whole) for place in places)
            elif instruction.opcode != "dynamic-update-slice" or instruction.operands[0] not in names:
                return whole
        return min(used, whole)

    def _bytes_written(self, inside: str, instruction: Instruction) -> int:
        if instruction.opcode in ("copy-start", "collective-permute-start"):  # (result, source, ...)
            return _bytes(instruction.shapes[:1])
        if instruction.opcode in ("all-gather-start", "slice-start"):  # (source, result, ...)
            return _bytes(instruction.shapes[1:2])
        if instruction.opcode != "fusion":
            if not instruction.shapes:
                return 0
            first, *others = instruction.shapes
            return self._bytes_of_result(self._computations[inside], instruction, first) + _bytes(others)
        inner = self._computations[called_by(instruction)[0]]
        root = list(inner.values())[-1]
        results = [inner[operand] for operand in root.operands] if root.opcode == "tuple" else [root]
        if len(results) != len(instruction.shapes):
            return _bytes(instruction.shapes)
        return sum(
            self._bytes_of_result(inner, result, shape)
            for result, shape in zip(results, instruction.shapes, strict=True)
        )

    @staticmethod
    def _bytes_of_result(around: dict[str, Instruction], result: Instruction, shape: Shape) -> int:
        """Bytes written for a result of this `shape`: an update in place writes only the update."""
        while result.opcode == "bitcast":
            result = around[result.operands[0]]
        if shape.fast:
            return 0
        if result.opcode == "dynamic-update-slice":
            return sum(part.bytes for part in around[result.operands[1]].shapes)
        return shape.bytes

    @functools.cached_property
    def collectives(self) -> dict[str, Collective]:
        """The collectives between the devices, by kind.

        A collective that is hidden behind computation is spread over several fusions, possibly of a loop that it does
        not belong to, all with one chain_id. It is counted once, where it is rarest. An all-reduce inside a fusion that
        returns only a part of its result is a reduce-scatter.
        """
        found: dict[tuple[str, str], Collective] = {}
        for name, instruction, count in self._all():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            taken = sum(
                shape.bytes for operand in instruction.operands for shape in self._computations[name][operand].shapes
            )
            result = list(self._computations[name].values())[-1] if name not in self._times else instruction
            given = sum(shape.bytes for shape in result.shapes)
            if instruction.opcode == "collective-permute-start":
                given = instruction.shapes[0].bytes
            elif instruction.opcode == "all-gather-start":
                given = sum(shape.bytes for shape in instruction.shapes) - taken
            elif instruction.opcode == "all-reduce-start":
                given = taken
            size = group_size(instruction, self.num_devices)
            chain = instruction.attribute(r'chain_id="(\d+)"')
            if kind == "all-gather" and chain is not None:  # its parts return what else their fusions compute
                given = sum(shape.bytes for shape in instruction.shapes)
            if kind == "all-reduce" and given * size == taken:
                kind = "reduce-scatter"
            share = (size - 1) / size
            sent = {
                "all-gather": given * share,
                "reduce-scatter": taken * share,
                "all-reduce": 2 * taken * share,
                "all-to-all": taken * share,
                "collective-permute": given,
            }[kind]
            place = f"{name}/{instruction.name}" if chain is None else chain
            of_one = Collective(count, count * given, round(count * sent))
            known = found.get((kind, place))
            if known is None or of_one.sent_bytes < known.sent_bytes:
                found[kind, place] = of_one
        return {
            kind: Collective(*(sum(column) for column in zip(*map(dataclasses.astuple, group), strict=True)))
            for kind in COLLECTIVES
            if (group := [value for (k, _), value in found.items() if k == kind])
        }

    @property
    def sent_bytes(self) -> int:
        """What one device must send at least within its slice, over all collectives."""
        return sum(collective.sent_bytes for collective in self.collectives.values())

    @functools.cached_property
    def given_to_network(self) -> dict[str, int]:
        """Bytes of one device that enter an operation between slices, by kind, such as "ALL_REDUCE".

        In a TPU program these are not collectives: the data is passed to the host's runtime.
        """
        found: collections.Counter[str] = collections.Counter()
        for _, instruction, count in self._scheduled():
            kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
            if instruction.opcode == "send" and kind:
                found[kind] += count * instruction.shapes[0].bytes
        return dict(found)


def _bytes(shapes: Sequence[Shape]) -> int:
    """The bytes in main memory."""
    return sum(shape.bytes for shape in shapes if not shape.fast)
