"""Which operators run on bytes: those that a clock says are not slower there.

An integer operator is not always faster than its float form, and converting to and from
bytes costs too. So none is taken for granted: each is measured both ways between its
neighbours as they are, those that are slower on bytes stay in floats, and since that
changes the neighbourhood of others, those are measured again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import onnx

from effdl.export.int8_operators import Int8Operator
from effdl.export.int8_segments import Segments

__all__ = ["MeasureModels", "OperatorChoice", "choose_int8_operators", "give_up_least_gain"]

MeasureModels = Callable[[Sequence[bytes]], Sequence[float]]
"""Milliseconds of serialised models, timed against each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorChoice:
    """What an operator runs on, and why.

    Attributes:
        name: The operator's first node.
        operator: Its kind, such as ``Conv``.
        precision: Where it runs.
        int8_ms: It between its neighbours, on bytes, in milliseconds.
        fp32_ms: The same in floats.
        reason: Why it is so.
    """

    name: str
    operator: str
    precision: Literal["int8", "fp32"]
    int8_ms: float
    fp32_ms: float
    reason: str

    @property
    def gain_ms(self) -> float:
        """What its bytes save."""
        return self.fp32_ms - self.int8_ms

    def to_json(self) -> dict[str, object]:
        """The object of the contract."""
        return asdict(self)


def choose_int8_operators(
    model: onnx.ModelProto, operators: Sequence[Int8Operator], measure: MeasureModels
) -> tuple[OperatorChoice, ...]:
    """Measure every operator on bytes and in floats, until none on bytes is slower.

    Args:
        model: The float graph, of fixed sizes.
        operators: Those of `find_int8_operators`.
        measure: The clock.

    Returns:
        A choice for every operator, in order.
    """
    segments = Segments(model, operators)
    known: dict[str, float] = {}
    chosen = {op.name for op in operators}
    seen: dict[str, tuple[float, float]] = {}
    while True:
        asked: dict[str, bytes] = {}
        forms: dict[str, tuple[str, str]] = {}
        for name in sorted(chosen):
            signatures = []
            for names in (chosen, chosen - {name}):
                signature = segments.signature(name, names)
                if signature not in known and signature not in asked:
                    asked[signature] = segments.cut(name, names)
                signatures.append(signature)
            forms[name] = signatures[0], signatures[1]
        if asked:
            known.update(zip(asked, measure(list(asked.values())), strict=True))
        seen |= {name: (known[on_bytes], known[plain]) for name, (on_bytes, plain) in forms.items()}
        slower = {name for name in chosen if seen[name][0] > seen[name][1]}
        if not slower:
            break
        chosen -= slower
    return tuple(_choice(op, *seen[op.name], op.name in chosen) for op in operators)


def _choice(op: Int8Operator, int8_ms: float, fp32_ms: float, on_bytes: bool) -> OperatorChoice:
    ratio = int8_ms / fp32_ms
    return OperatorChoice(
        name=op.name,
        operator=op.kind,
        precision="int8" if on_bytes else "fp32",
        int8_ms=int8_ms,
        fp32_ms=fp32_ms,
        reason=f"int8 takes {ratio:.2f} of fp32's time between its neighbours",
    )


def give_up_least_gain(choices: Sequence[OperatorChoice]) -> tuple[OperatorChoice, ...]:
    """The half of the int8 operators that save least go back to floats; at least one does."""
    on_bytes = sorted((c for c in choices if c.precision == "int8"), key=lambda c: c.gain_ms)
    given_up = {c.name for c in on_bytes[: (len(on_bytes) + 1) // 2]}
    return tuple(
        OperatorChoice(
            **{
                **asdict(choice),
                "precision": "fp32",
                "reason": "the whole graph was slower on bytes, and this saved least",
            }
        )
        if choice.name in given_up
        else choice
        for choice in choices
    )
