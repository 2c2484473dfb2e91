"""The opcodes of Python's pickle protocols 0 to 5, as far as data needs them."""

from __future__ import annotations

import codecs
import pickle as op
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kmrcnn.importers.errors import UnsafePickleError
from kmrcnn.importers.pickle_values import ADVICE, Name, Span, StandIn, key

if TYPE_CHECKING:
    from kmrcnn.importers.pickle_machine import PickleMachine

_SHORT = 256  # Strings up to this many bytes are decoded at once.


def refuse(machine: PickleMachine) -> None:
    """Every opcode that is not in the table: making instances, extension codes, buffers outside the file."""
    code = bytes(machine.view[machine.position - 1:machine.position])
    if code == op.INST:
        _global(machine)
    names = {value: name for name, value in vars(op).items() if name.isupper() and type(value) is bytes}
    raise UnsafePickleError(f"uses the opcode {names.get(code, code)}: {ADVICE}")


def _call(machine: PickleMachine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if type(function) is not Name or function.function is None:
        shown = function if type(function) is Name else f"a {type(function).__name__}"
        raise UnsafePickleError(f"calls {shown}: {ADVICE}")
    if type(arguments) is not tuple:
        raise TypeError("a call without a tuple of arguments")
    machine.stack.append(function.function(machine, *arguments))


def _build(machine: PickleMachine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, StandIn):
        target.build(state)
    elif type(target) is not dict or type(state) is not dict:
        # A state dict's own attributes (versions of its modules) are of no use here.
        raise UnsafePickleError(f"gives a state to a {type(target).__name__}: {ADVICE}")


def _persistent(machine: PickleMachine) -> None:
    if machine.persistent_load is None:
        raise UnsafePickleError(f"uses persistent ids: {ADVICE}")
    machine.stack.append(machine.persistent_load(machine.stack.pop()))


def _set_items(machine: PickleMachine, items: list) -> None:
    target = machine.top(dict)
    for name, value in zip(items[::2], items[1::2], strict=True):
        target[key(name)] = value


def _push(function: Callable[[PickleMachine], Any]) -> Callable[[PickleMachine], None]:
    """An opcode that pushes what `function` returns."""
    return lambda machine: machine.stack.append(function(machine))


def _string(form: str, encoding: str | None = None) -> Callable[[PickleMachine], None]:
    """A string with its length before it: text, Python 2's in latin1, or bytes."""
    def read(machine: PickleMachine) -> str | bytes | Span:
        span = Span(machine.take(machine.unpack(form)), encoding)
        return span if len(span.view) > _SHORT else span.decoded()
    return _push(read)


def _long(form: str) -> Callable[[PickleMachine], None]:
    def read(machine: PickleMachine) -> int:
        size = machine.unpack(form)
        if not 0 <= size <= 255:
            raise ValueError(f"an integer of {size} bytes")
        return int.from_bytes(machine.take(size), "little", signed=True)
    return _push(read)


def _text_integer(machine: PickleMachine) -> int | bool:
    line = machine.line()
    return line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L"))


def _quoted(machine: PickleMachine) -> str:
    line = machine.line()
    if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
        raise ValueError("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


def _mark(machine: PickleMachine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _pop(machine: PickleMachine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _tuple(count: int) -> Callable[[PickleMachine], None]:
    def build(machine: PickleMachine) -> None:
        items = tuple(machine.stack.pop() for _ in range(count))
        machine.stack.append(items[::-1])
    return build


def _append(machine: PickleMachine) -> None:
    item = machine.stack.pop()
    machine.top(list).append(item)


def _set_item(machine: PickleMachine) -> None:
    value, name = machine.stack.pop(), machine.stack.pop()
    _set_items(machine, [name, value])


def _set_marked(machine: PickleMachine) -> None:
    items = machine.pop_mark()
    _set_items(machine, items)


def _append_marked(machine: PickleMachine) -> None:
    items = machine.pop_mark()
    machine.top(list).extend(items)


def _add_marked(machine: PickleMachine) -> None:
    items = machine.pop_mark()
    machine.top(set).update(map(key, items))


def _dictionary(machine: PickleMachine) -> None:
    items = machine.pop_mark()
    machine.stack.append({})
    _set_items(machine, items)


def _marked(kind: Callable[[list], Any]) -> Callable[[PickleMachine], None]:
    def build(machine: PickleMachine) -> None:
        items = machine.pop_mark()
        machine.stack.append(kind(items))
    return build


def _put(index: Callable[[PickleMachine], int]) -> Callable[[PickleMachine], None]:
    def put(machine: PickleMachine) -> None:
        machine.memo[index(machine)] = machine.stack[-1]
    return put


def _get(index: Callable[[PickleMachine], int]) -> Callable[[PickleMachine], None]:
    return _push(lambda machine: machine.memo[index(machine)])


def _number(form: str) -> Callable[[PickleMachine], Any]:
    return lambda machine: machine.unpack(form)


def _line_number(machine: PickleMachine) -> int:
    return int(machine.line())


def _global(machine: PickleMachine) -> Name:
    return machine.name(machine.line().decode("utf-8"), machine.line().decode("utf-8"))


def _stack_global(machine: PickleMachine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.name(module, name))


def _protocol(machine: PickleMachine) -> None:
    if (version := machine.unpack("<B")) > 5:
        raise ValueError(f"protocol {version} is unknown")


def _frame(machine: PickleMachine) -> None:
    if (size := machine.unpack("<Q")) > len(machine.view) - machine.position:
        raise ValueError(f"a frame of {size} bytes; the file is truncated")


OPCODES: dict[bytes, Callable[[PickleMachine], None]] = {
    op.PROTO: _protocol, op.FRAME: _frame, op.MARK: _mark, op.POP: _pop,
    op.POP_MARK: lambda machine: machine.pop_mark(),
    op.DUP: _push(lambda machine: machine.stack[-1]),
    op.NONE: _push(lambda machine: None), op.NEWTRUE: _push(lambda machine: True),
    op.NEWFALSE: _push(lambda machine: False),
    op.INT: _push(_text_integer), op.LONG: _push(_text_integer), op.FLOAT: _push(lambda machine: float(machine.line())),
    op.BININT: _push(_number("<i")), op.BININT1: _push(_number("<B")), op.BININT2: _push(_number("<H")),
    op.LONG1: _long("<B"), op.LONG4: _long("<i"), op.BINFLOAT: _push(_number(">d")),
    op.STRING: _push(_quoted), op.BINSTRING: _string("<i", "latin1"), op.SHORT_BINSTRING: _string("<B", "latin1"),
    op.BINBYTES: _string("<I"), op.SHORT_BINBYTES: _string("<B"), op.BINBYTES8: _string("<Q"),
    op.BYTEARRAY8: _string("<Q"), op.READONLY_BUFFER: lambda machine: None,
    op.UNICODE: _push(lambda machine: machine.line().decode("raw-unicode-escape")),
    op.BINUNICODE: _string("<I", "utf-8"), op.SHORT_BINUNICODE: _string("<B", "utf-8"),
    op.BINUNICODE8: _string("<Q", "utf-8"),
    op.EMPTY_TUPLE: _push(lambda machine: ()), op.TUPLE: _marked(tuple),
    op.TUPLE1: _tuple(1), op.TUPLE2: _tuple(2), op.TUPLE3: _tuple(3),
    op.EMPTY_LIST: _push(lambda machine: []), op.LIST: _marked(list), op.APPEND: _append, op.APPENDS: _append_marked,
    op.EMPTY_DICT: _push(lambda machine: {}), op.DICT: _dictionary,
    op.SETITEM: _set_item, op.SETITEMS: _set_marked,
    op.EMPTY_SET: _push(lambda machine: set()), op.ADDITEMS: _add_marked,
    op.FROZENSET: _marked(lambda items: frozenset(map(key, items))),
    op.PUT: _put(_line_number), op.BINPUT: _put(_number("<B")), op.LONG_BINPUT: _put(_number("<I")),
    op.MEMOIZE: _put(lambda machine: len(machine.memo)),
    op.GET: _get(_line_number), op.BINGET: _get(_number("<B")), op.LONG_BINGET: _get(_number("<I")),
    op.GLOBAL: _push(_global), op.STACK_GLOBAL: _stack_global,
    op.REDUCE: _call, op.BUILD: _build, op.BINPERSID: _persistent,
}
