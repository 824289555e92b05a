"""The text of a compiled program (HLO), parsed into computations of instructions."""

import dataclasses
import functools
import itertools
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}  # others end with their number of bits: f32, s8, f8e4m3fn
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")


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
        """The first group of a pattern in the text after the operands."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


def parse(text: str) -> dict[str, dict[str, Instruction]]:
    """The instructions of every computation by name, in order; the entry computation is also under "ENTRY"."""
    found: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = found[header[2]] = {}
            if header[1]:
                found["ENTRY"] = current
        elif line.rstrip() == "}":  # a kernel's metadata has lines that begin like this
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(match[1], match[2])
            current[instruction.name] = instruction
    return found


def _instruction(name: str, rest: str) -> Instruction:
    """`SHAPE opcode(operands), attributes` as an instruction."""
    shape, rest = _split_shape(re.sub(r"/\*.*?\*/", "", rest))
    opcode, _, rest = rest.strip().partition("(")
    end = _closing("(" + rest) - 1
    argument = rest[: end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(name, opcode, shape, operands, argument, rest[end:])


def _closing(text: str) -> int:
    """The position at which the text's opening parenthesis is closed."""
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


def called_by(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs, except the few operations of a reduction."""
    if instruction.opcode == "conditional":
        several = instruction.attribute(r"branch_computations=\{([^}]*)\}")
        if several:
            return re.findall(r"[\w.\-]+", several)
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
    if instruction.opcode == "call":
        return re.findall(r"to_apply=%?([\w.\-]+)", instruction.attributes)
    return re.findall(r"\bcalls=%?([\w.\-]+)", instruction.attributes)


def element(instruction: Instruction | None) -> int | None:
    """The index of the element of a loop's state that an instruction reads."""
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    return int(instruction.attribute(r"index=(\d+)"))


def number_of(instruction: Instruction | None) -> int | None:
    """The value of a scalar integer constant."""
    if instruction is None or instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.argument):
        return None
    return int(instruction.argument)


def group_size(instruction: Instruction, num_devices: int) -> int:
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


def dot_flops(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    lengths = (left[int(axis)] for axis in contracted.split(",") if axis)
    return 2 * math.prod(instruction.shapes[0].dims) * math.prod(lengths)


def is_attention_kernel(instruction: Instruction) -> bool:
    """Whether it is the only hand-written kernel that our programs call: splash attention, forward."""
    return instruction.opcode == "custom-call" and instruction.name.startswith("splash_mha_fwd")


def attention_kernel_flops(query: tuple[int, ...], key: tuple[int, ...]) -> int:
    """The two products of attention; both are [..., heads, tokens, channels]."""
    return 4 * math.prod(query) * key[-2]


def convolution_flops(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Two for every pair of an output and an input that a weight connects; padding and holes are no inputs."""
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
        pairs *= valid_pairs(
            inputs=left[labels[1].index(axis)],
            outputs=output[labels[3].index(axis)],
            size=right[labels[2].index(axis)],
            stride=field("stride", position, 1),
            low=int(padding[0]),
            spread=field("lhs_dilate", position, 1),
            holes=field("rhs_dilate", position, 1),
        )
    batch, features = output[labels[3].index("b")], output[labels[3].index("f")]
    return 2 * batch * features * right[labels[2].index("i")] * pairs  # groups: `batch` or "i" is that of one already


@functools.cache
def valid_pairs(*, inputs: int, outputs: int, size: int, stride: int, low: int, spread: int, holes: int) -> int:
    """The number of pairs of an output and a weight along one axis that meet an input."""
    total = 0
    for output, weight in itertools.product(range(outputs), range(size)):
        at = output * stride + weight * holes - low
        total += at % spread == 0 and 0 <= at // spread < inputs
    return total
