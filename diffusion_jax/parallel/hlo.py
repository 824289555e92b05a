"""What a compiled program does, read from its own text: multiplications, memory traffic, communication.

The compiler's cost analysis takes the body of a loop once, and the TPU's text, unlike the CPU's, states no trip counts.
Here every loop is multiplied out: `for (i = start; i < end; i += step)` is read from the loop's condition, its body and
the tuple that enters it. A loop that does not have this form is counted once, and `Program.unknown_loops` says how many
there are.

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
import itertools
import math
import re
from collections.abc import Iterator, Sequence

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}  # others end with their number of bits: f32, s8, f8e4m3fn
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota")
_CONTROL = ("while", "conditional", "call")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of a result.

    Attributes:
      dims: lengths of the axes.
      bytes: in memory, without padding to tiles.
      fast: whether it is placed in the core's own memory.
    """

    dims: tuple[int, ...]
    bytes: int
    fast: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the program."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in what follows the operands."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


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
        found: dict[str, dict[str, Instruction]] = {}
        current: dict[str, Instruction] | None = None
        for line in self.text.splitlines():
            if header := _HEADER.match(line):
                current = found[header[2]] = {}
                if header[1]:
                    found["ENTRY"] = current
            elif line.startswith("}"):
                current = None
            elif current is not None and (match := _INSTRUCTION.match(line)):
                instruction = _parse(match[1], match[2])
                current[instruction.name] = instruction
        return found

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
                    for called in _called(instruction):
                        run(called, count)

        run("ENTRY", 1)
        return dict(times)

    @functools.cached_property
    def unknown_loops(self) -> int:
        """Loops whose number of trips can not be read; they are counted once."""
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
        body = self._computations[loop.attribute(r"body=%?([\w.\-]+)")]
        start_tuple = self._computations[inside].get(loop.operands[0])
        compare = list(condition.values())[-1]
        if compare.opcode != "compare" or compare.attribute(r"direction=(\w+)") != "LT":
            return None
        counter, limit = (condition.get(name) for name in compare.operands)
        index = _element(counter)
        root = list(body.values())[-1]
        if index is None or start_tuple is None or start_tuple.opcode != "tuple" or root.opcode != "tuple":
            return None

        def at_start(position: int) -> int | None:
            return self._constant(inside, start_tuple.operands[position])

        end = _number(limit) if _element(limit) is None else at_start(_element(limit))
        start = at_start(index)
        step = self._step(body, root.operands[index], index)
        if end is None or start is None or not step:
            return None
        return max(0, -(-(end - start) // step))

    def _constant(self, computation: str, name: str) -> int | None:
        """The value of a scalar constant, also behind a copy."""
        instruction = self._computations[computation].get(name)
        while instruction is not None and instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            instruction = self._computations[computation].get(instruction.operands[0])
        return _number(instruction)

    def _step(self, body: dict[str, Instruction], name: str, index: int) -> int | None:
        """By how much the loop's counter, element `index` of its state, grows: `counter + constant`."""
        added = 0
        while True:
            instruction = body.get(name)
            if instruction is None:
                return None
            if _element(instruction) is not None:
                return added if _element(instruction) == index else None
            if instruction.opcode in ("copy", "bitcast"):
                name = instruction.operands[0]
            elif instruction.opcode == "add":
                numbers = [_number(body.get(operand)) for operand in instruction.operands]
                if all(number is None for number in numbers):
                    return None
                which = 0 if numbers[0] is not None else 1
                added += numbers[which]
                name = instruction.operands[1 - which]
            elif instruction.opcode == "fusion":  # of one addition
                inner = self._computations[_called(instruction)[0]]
                result = list(inner.values())[-1]
                numbers = [_number(inner.get(operand)) for operand in result.operands]
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
        """Every operation of a computation, also those inside fusions."""
        for instruction in self._computations[computation].values():
            yield computation, instruction, count
            if instruction.opcode not in _CONTROL:
                for called in _called(instruction):
                    yield from self._deep(called, count)

    def _all(self) -> Iterator[tuple[str, Instruction, int]]:
        for name, count in self._times.items():
            yield from self._deep(name, count)

    @functools.cached_property
    def flops(self) -> int:
        """Operations of convolutions and dots on one device."""
        total = 0
        for name, instruction, count in self._all():
            if instruction.opcode in ("convolution", "dot"):
                left, right = (self._computations[name][operand].shapes[0].dims for operand in instruction.operands[:2])
                of_one = _convolution_flops if instruction.opcode == "convolution" else _dot_flops
                total += count * of_one(instruction, left, right)
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
        """Of the operand at a position, of so many bytes, what a fusion reads: slices, or all of it."""
        inner = self._computations[_called(fusion)[0]]
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
        inner = self._computations[_called(instruction)[0]]
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
        """What is written of a result that lies as `shape` says: an update in place writes the update alone."""
        while result.opcode == "bitcast":
            result = around[result.operands[0]]
        if shape.fast:
            return 0
        if result.opcode == "dynamic-update-slice":
            return sum(part.bytes for part in around[result.operands[1]].shapes)
        return shape.bytes

    @functools.cached_property
    def collectives(self) -> dict[str, Collective]:
        """What is sent between the devices, by kind.

        One that is hidden behind computation is spread over several fusions, perhaps those of a loop that it does not
        belong to, all with one chain_id: it is counted once, where it is rarest. An all-reduce inside a fusion that
        gives a part of its result only is a reduce-scatter.
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
            size = _group_size(instruction, self.num_devices)
            chain = instruction.attribute(r'chain_id="(\d+)"')
            if kind == "all-gather" and chain is not None:  # its parts give what else their fusions compute
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
        """What one device must send at least, over all collectives."""
        return sum(collective.sent_bytes for collective in self.collectives.values())


def _parse(name: str, rest: str) -> Instruction:
    """`SHAPE opcode(operands), attributes` as an instruction."""
    shape, rest = _split_shape(re.sub(r"/\*.*?\*/", "", rest))
    opcode, _, rest = rest.strip().partition("(")
    end = _closing("(" + rest) - 1
    argument = rest[: end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(name, opcode, shape, operands, argument, rest[end:])


def _closing(text: str) -> int:
    """Where the parenthesis that opens a text has been closed."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return position + 1
    return len(text)


def _split_shape(text: str) -> tuple[tuple[Shape, ...], str]:
    if text.startswith("("):
        end = _closing(text)
        arrays, rest = text[:end], text[end:]
    else:
        match = _ARRAY.match(text)
        arrays, rest = (match[0], text[match.end() :]) if match else ("", text.partition(" ")[2])
    return tuple(_shape(*match) for match in _ARRAY.findall(arrays)), rest


def _shape(dtype: str, dims: str, layout: str) -> Shape:
    lengths = tuple(int(length) for length in dims.split(",") if length)
    bits = _BITS[dtype] if dtype in _BITS else int(re.match(r"[a-z]+(\d+)", dtype)[1])
    return Shape(lengths, math.prod(lengths) * bits // 8, "S(1)" in layout)


def _bytes(shapes: Sequence[Shape]) -> int:
    """In main memory."""
    return sum(shape.bytes for shape in shapes if not shape.fast)


def _called(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs, other than the few operations of a reduction."""
    if instruction.opcode == "conditional":
        several = instruction.attribute(r"branch_computations=\{([^}]*)\}")
        if several:
            return re.findall(r"[\w.\-]+", several)
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
    if instruction.opcode == "call":
        return re.findall(r"to_apply=%?([\w.\-]+)", instruction.attributes)
    return re.findall(r"\bcalls=%?([\w.\-]+)", instruction.attributes)


def _element(instruction: Instruction | None) -> int | None:
    """Which element of a loop's state an instruction takes out."""
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    return int(instruction.attribute(r"index=(\d+)"))


def _number(instruction: Instruction | None) -> int | None:
    """The value of a scalar integer constant."""
    if instruction is None or instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.argument):
        return None
    return int(instruction.argument)


def _group_size(instruction: Instruction, num_devices: int) -> int:
    """How many devices take part in a collective: `{{0,1},{2,3}}`, `[2,2]<=[4]` or `mesh['a'=2,'b'=2] {'b'}`."""
    mesh = re.search(r"replica_groups=\s*@?mesh\w*\[([^\]]*)\]\s*\{([^}]*)\}", instruction.attributes)
    if mesh:
        lengths = {name: int(length) for name, length in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else lengths[axis] for axis, part in parts)
    if listed := instruction.attribute(r"replica_groups=\{\{([\d,]*)\}"):
        return listed.count(",") + 1
    if tiled := instruction.attribute(r"replica_groups=\[\d+,(\d+)\]"):
        return int(tiled)
    return num_devices


def _dot_flops(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    lengths = (left[int(axis)] for axis in contracted.split(",") if axis)
    return 2 * math.prod(instruction.shapes[0].dims) * math.prod(lengths)


def _convolution_flops(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Two for every pair of an output and an input that a weight joins; padding and holes are no inputs."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    axes = [label for label in labels[1] if label.isdigit()]
    output = instruction.shapes[0].dims
    fields = {
        name: instruction.attribute(rf"[{{ ]{name}=([\dx_\-]+)")
        for name in ("size", "stride", "pad", "lhs_dilate", "rhs_dilate")
    }

    def field(name: str, position: int, default: int) -> int:
        return int(fields[name].split("x")[position]) if fields[name] else default

    pairs = 1
    for axis in axes:
        position = int(axis)
        padding = fields["pad"].split("x")[position].split("_") if fields["pad"] else ("0", "0")
        pairs *= _valid_pairs(
            inputs=left[labels[1].index(axis)],
            outputs=output[labels[3].index(axis)],
            size=right[labels[2].index(axis)],
            stride=field("stride", position, 1),
            low=int(padding[0]),
            spread=field("lhs_dilate", position, 1),
            holes=field("rhs_dilate", position, 1),
        )
    batch, features = output[labels[3].index("b")], output[labels[3].index("f")]
    groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    return 2 * batch * features * right[labels[2].index("i")] * pairs // max(groups, 1)


@functools.cache
def _valid_pairs(*, inputs: int, outputs: int, size: int, stride: int, low: int, spread: int, holes: int) -> int:
    """How many pairs of an output and a weight along one axis meet an input."""
    total = 0
    for output, weight in itertools.product(range(outputs), range(size)):
        at = output * stride + weight * holes - low
        total += at % spread == 0 and 0 <= at // spread < inputs
    return total
