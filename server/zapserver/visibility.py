"""The filter language of lists: `WorkflowType = 'Order' AND (ExecutionStatus = Running OR Attempts > 3)`.

    query      = [ either ]                                      an empty query matches everything
    either     = both { OR both }
    both       = unary { AND unary }
    unary      = NOT unary | "(" either ")" | comparison
    comparison = field ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
               | field [ NOT ] IN "(" value { "," value } ")"
               | field [ NOT ] BETWEEN value AND value           both ends included
               | field [ NOT ] STARTS_WITH value
               | field IS [ NOT ] NULL
    value      = 'text' | "text" | number | name

Keywords are read in any case; texts have no escapes. A field that is not one of the system's is a search
attribute. What is compared is what both sides are: numbers as numbers, times (RFC 3339, or a date) as
instants, everything else as text. Sides of different kinds are unequal, and neither is below the other.
A list holds what any of its items holds. A field that is absent equals '' and is below and above nothing.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeAlias

from zapserver.engine.commands import Status

QUERY_BYTES_MAX: Final = 8 * 1024
"""Far above what people write; it bounds the work of a list over every execution."""

NESTING_MAX: Final = 64
"""How deep parentheses and NOTs may go: each level is a call on the stack."""

NUMBER_DIGITS_MAX: Final = 40
"""Enough for every 64-bit number, and for a float's precision twice over."""

Fields: TypeAlias = Mapping[str, object]

_STATUS: Final = "ExecutionStatus"
_STATUS_PREFIX: Final = "WORKFLOWEXECUTIONSTATUS"
_STATUSES: Final = {status.name.replace("_", ""): status.name for status in Status}
_KEYWORDS: Final = frozenset({"AND", "OR", "NOT", "IN", "BETWEEN", "IS", "NULL", "STARTS_WITH"})


class QueryError(ValueError):
    """A query that cannot be read; `column` counts its characters from 1."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(f"column {column}: {message}")
        self.column = column


@dataclass(frozen=True, slots=True)
class Query:
    """A filter that was read. It knows no executions: `matches` takes the fields of one."""

    text: str
    _condition: _Condition | None

    def matches(self, fields: Fields) -> bool:
        """Whether an execution with these fields is among those asked for."""
        return self._condition is None or self._condition.matches(fields)


def parse_query(text: str) -> Query:
    """Read a filter. Raises `QueryError`, a ValueError, that says what was expected and where."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > QUERY_BYTES_MAX:
        raise QueryError(f"a query of {size} bytes: at most {QUERY_BYTES_MAX}", QUERY_BYTES_MAX + 1)
    parser = _Parser(_tokens(text))
    return Query(text, parser.query())


# -------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the query, with everything that it can be taken for."""

    text: str
    number: float | None  # an int where it is one, so that 64-bit numbers stay exact
    is_bare_number: bool
    instant: datetime | None


def _order(actual: object, value: _Value) -> int | None:
    """-1, 0 or 1 as `actual` is below, at or above `value`; None if they cannot be put in order."""
    match actual:
        case None:
            return None if value.text else 0
        case bool():
            return 0 if value.text.lower() == str(actual).lower() else None
        case int() | float():
            return None if value.number is None else _sign(actual, value.number)
        case datetime():
            return None if value.instant is None else _sign(actual, value.instant)
        case str():
            if value.is_bare_number and value.number is not None:
                number = _number(actual)
                return None if number is None else _sign(number, value.number)
            if value.instant is not None:
                instant = _instant(actual)
                if instant is not None:
                    return _sign(instant, value.instant)
            return _sign(actual, value.text)
        case _:
            return 0 if str(actual) == value.text else None


def _sign(left: float | str | datetime, right: float | str | datetime) -> int | None:
    if left == right:
        return 0
    # Both sides have one type here; NaN alone is neither below nor above.
    return -1 if left < right else 1 if left > right else None  # type: ignore[operator]


_NUMBER: Final = re.compile(rf"[+-]?[0-9]{{1,{NUMBER_DIGITS_MAX}}}(?:\.[0-9]{{1,{NUMBER_DIGITS_MAX}}})?", re.ASCII)
_INSTANT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?",
    re.ASCII,
)


def _number(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):
        return None
    return float(text) if "." in text else int(text)


def _instant(text: str) -> datetime | None:
    """A time or a date; without an offset it is UTC's."""
    if not _INSTANT.fullmatch(text):
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:  # a month 13
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when


def _actual(fields: Fields, name: str) -> object:
    found = fields.get(name)
    return _status(str(found)) if name == _STATUS and found is not None else found


def _status(text: str) -> str:
    """One spelling for TimedOut, TIMED_OUT and WORKFLOW_EXECUTION_STATUS_TIMED_OUT, and for British ones."""
    plain = text.upper().replace("_", "").removeprefix(_STATUS_PREFIX)
    return plain.replace("CANCELL", "CANCEL")


def _holds(actual: object, test: Callable[[object], bool]) -> bool:
    if isinstance(actual, list | tuple | set | frozenset):
        return any(test(item) for item in actual)
    return test(actual)


# ------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True, slots=True)
class _All:
    parts: tuple[_Condition, ...]

    def matches(self, fields: Fields) -> bool:
        return all(part.matches(fields) for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Any:
    parts: tuple[_Condition, ...]

    def matches(self, fields: Fields) -> bool:
        return any(part.matches(fields) for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Not:
    part: _Condition

    def matches(self, fields: Fields) -> bool:
        return not self.part.matches(fields)


@dataclass(frozen=True, slots=True)
class _Compare:
    field: str
    holds: Callable[[int, int], bool]  # of the order and 0
    value: _Value

    def matches(self, fields: Fields) -> bool:
        return _holds(_actual(fields, self.field), self._test)

    def _test(self, actual: object) -> bool:
        order = _order(actual, self.value)
        return order is not None and self.holds(order, 0)


@dataclass(frozen=True, slots=True)
class _In:
    field: str
    values: tuple[_Value, ...]

    def matches(self, fields: Fields) -> bool:
        return _holds(
            _actual(fields, self.field), lambda actual: any(_order(actual, value) == 0 for value in self.values)
        )


@dataclass(frozen=True, slots=True)
class _Between:
    field: str
    low: _Value
    high: _Value

    def matches(self, fields: Fields) -> bool:
        return _holds(_actual(fields, self.field), self._test)

    def _test(self, actual: object) -> bool:
        return _order(actual, self.low) in (0, 1) and _order(actual, self.high) in (-1, 0)


@dataclass(frozen=True, slots=True)
class _StartsWith:
    field: str
    prefix: str

    def matches(self, fields: Fields) -> bool:
        return _holds(
            _actual(fields, self.field), lambda actual: isinstance(actual, str) and actual.startswith(self.prefix)
        )


@dataclass(frozen=True, slots=True)
class _IsNull:
    field: str

    def matches(self, fields: Fields) -> bool:
        return fields.get(self.field) is None


_Condition: TypeAlias = _All | _Any | _Not | _Compare | _In | _Between | _StartsWith | _IsNull

# "!=" is the opposite of "=", so that an absent field and a list without the value are unequal to it.
_OPERATORS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


# ---------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # name, number, text, operator, mark, or end
    text: str
    column: int

    @property
    def keyword(self) -> str:
        """The keyword that this is, in capitals; "" for anything else."""
        upper = self.text.upper()
        return upper if self.kind == "name" and upper in _KEYWORDS else ""

    def __str__(self) -> str:
        return "the end of the query" if self.kind == "end" else self.text


_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>[+-]?[0-9]+(?:\.[0-9]+)?)
      | (?P<text>'[^']*'|"[^"]*")
      | (?P<operator>!=|<=|>=|=|<|>)
      | (?P<mark>[(),])""",
    re.VERBOSE | re.ASCII,
)


def _tokens(text: str) -> list[_Token]:
    tokens = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            if text[position] in "'\"":
                raise QueryError(f"the text that begins here has no closing {text[position]}", position + 1)
            raise QueryError(f"{text[position]!r} has no meaning here: put texts into quotes", position + 1)
        kind = found.lastgroup
        assert kind is not None
        if kind != "space":
            tokens.append(_Token(kind, found[0], position + 1))
        position = found.end()
    tokens.append(_Token("end", "", len(text) + 1))
    return tokens


class _Parser:
    """Recursive descent: one method for each rule of the grammar above."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._index = 0
        self._depth = 0

    def query(self) -> _Condition | None:
        if self._next.kind == "end":
            return None
        condition = self._either()
        if self._next.kind != "end":
            raise self._expected("AND, OR or the end")
        return condition

    def _either(self) -> _Condition:
        parts = [self._both()]
        while self._accept("OR"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else _Any(tuple(parts))

    def _both(self) -> _Condition:
        parts = [self._unary()]
        while self._accept("AND"):
            parts.append(self._unary())
        return parts[0] if len(parts) == 1 else _All(tuple(parts))

    def _unary(self) -> _Condition:
        self._depth += 1
        if self._depth > NESTING_MAX:
            raise QueryError(f"nested more than {NESTING_MAX} levels deep", self._next.column)
        if self._accept("NOT"):
            condition: _Condition = _Not(self._unary())
        elif self._accept("("):
            condition = self._either()
            self._expect(")")
        else:
            condition = self._comparison()
        self._depth -= 1
        return condition

    def _comparison(self) -> _Condition:
        if self._next.kind != "name" or self._next.keyword:
            raise self._expected("a field, NOT or '('")
        field = self._take().text
        if self._accept("IS"):
            negated = self._accept("NOT")
            self._expect("NULL")
            return _Not(_IsNull(field)) if negated else _IsNull(field)
        if self._next.kind == "operator":
            sign = self._take().text
            if sign == "!=":
                return _Not(_Compare(field, operator.eq, self._value(field, is_whole=True)))
            return _Compare(field, _OPERATORS[sign], self._value(field, is_whole=sign == "="))
        negated = self._accept("NOT")
        if self._accept("IN"):
            condition: _Condition = _In(field, self._values(field))
        elif self._accept("BETWEEN"):
            low = self._value(field, is_whole=False)
            self._expect("AND")
            condition = _Between(field, low, self._value(field, is_whole=False))
        elif self._accept("STARTS_WITH"):
            condition = _StartsWith(field, self._value(field, is_whole=False).text)
        else:
            raise self._expected("IN, BETWEEN or STARTS_WITH" if negated else f"an operator after {field}")
        return _Not(condition) if negated else condition

    def _values(self, field: str) -> tuple[_Value, ...]:
        self._expect("(")
        values = [self._value(field, is_whole=True)]
        while self._accept(","):
            values.append(self._value(field, is_whole=True))
        self._expect(")")
        return tuple(values)

    def _value(self, field: str, *, is_whole: bool) -> _Value:
        """A value for `field`; one that is compared as a whole must be a status where a status is meant."""
        token = self._next
        if token.kind not in ("text", "number", "name") or token.keyword:
            raise self._expected("a value: 'text', a number or a name")
        self._index += 1
        text = token.text[1:-1] if token.kind == "text" else token.text
        if field == _STATUS:
            text = _status(text)
            if is_whole and text and text not in _STATUSES:
                raise QueryError(f"{token} is no status: there are {', '.join(_STATUSES.values())}", token.column)
        number = _number(text)
        if token.kind == "number" and number is None:
            raise QueryError(f"a number of more than {NUMBER_DIGITS_MAX} digits", token.column)
        return _Value(text, number, token.kind == "number", _instant(text))

    # ------------------------------------------------------------------------------------- tokens

    @property
    def _next(self) -> _Token:
        return self._tokens[self._index]

    def _take(self) -> _Token:
        token = self._next
        self._index += 1
        return token

    def _accept(self, what: str) -> bool:
        """Take the next token if it is this keyword or mark."""
        token = self._next
        if token.keyword == what or (token.kind == "mark" and token.text == what):
            self._index += 1
            return True
        return False

    def _expect(self, what: str) -> None:
        if not self._accept(what):
            raise self._expected(what if what in _KEYWORDS else f"{what!r}")

    def _expected(self, what: str) -> QueryError:
        return QueryError(f"expected {what}, found {self._next}", self._next.column)
