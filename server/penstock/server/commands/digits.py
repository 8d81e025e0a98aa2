"""The demonstration of ``penstock infer``: held-out digits, drawn with the model's answers.

Knows the shipped pictures. Drawing is pure; ``demonstrate`` alone asks a server.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, TensorSpec
from penstock.server import demo
from penstock.server.commands.failure import USAGE, CommandError
from penstock.server.commands.infer_outputs import write_npz
from penstock.server.commands.terminal import Terminal, forgive, terminal_for

if TYPE_CHECKING:
    from penstock.server.commands.remote import Client

_COUNT: Final = 3
_BAR_COLUMNS: Final = 20
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True)
class Answer:
    """One picture, [1,8,8] of 0..1, what it shows, and what the model gave for each digit."""

    index: int
    image: Array
    label: int
    probabilities: Array

    @property
    def digit(self) -> int:
        return int(self.probabilities.argmax())

    @property
    def right(self) -> bool:
        return self.digit == self.label


def takes_pictures(inputs: Sequence[TensorSpec]) -> bool:
    """Whether these are the inputs of the demonstration's model."""
    return len(inputs) == 1 and inputs[0] == TensorSpec("image", dt.FP32, (-1, 1, 8, 8))


def demonstrate(client: Client, arguments: argparse.Namespace) -> int:
    """One request with all pictures as its rows, and its answers shown."""
    images, labels = demo.heldout()
    chosen = choose(len(images), arguments.index, arguments.count, arguments.seed)
    started = perf_counter()
    result = client.infer("digits", {"image": images[chosen]}, version=arguments.version)
    elapsed_s = perf_counter() - started
    if "probabilities" not in result or result["probabilities"].shape != (len(chosen), 10):
        raise CommandError(
            f"this model 'digits' is another one: {result!r}", "give it a picture with --input"
        )
    answers = [
        Answer(index, images[index], int(labels[index]), row)
        for index, row in zip(chosen, result["probabilities"], strict=True)
    ]
    if arguments.output == "json":
        print(json.dumps([document(answer) for answer in answers]))
    elif arguments.output == "text":
        forgive(sys.stdout)
        how = f"one request over {arguments.protocol}, {elapsed_s * 1e3:.1f} ms"
        print("\n".join(lines(answers, terminal_for(sys.stdout), how)))
    else:
        columns = {"image": images[chosen], "probabilities": result["probabilities"]}
        rows = {"index": np.array(chosen), "label": labels[chosen]}
        write_npz(Path(arguments.output), {**columns, **rows})
        print(f"wrote {arguments.output}", file=sys.stderr)
    return 0


def choose(
    total: int, indexes: Sequence[int] | None, count: int | None, seed: int | None
) -> list[int]:
    """Which of ``total`` pictures: those asked for, or ``count`` different ones by chance.

    Raises:
        CommandError: there are not so many.
    """
    if indexes is None:
        if (count or 0) > total:
            raise CommandError(f"--count: there are {total} pictures", status=USAGE)
        return sorted(Random(seed).sample(range(total), count or _COUNT))
    if count is not None or seed is not None:
        raise CommandError("--index names pictures, --count and --seed choose some", status=USAGE)
    if max(indexes) >= total:
        raise CommandError(f"--index: pictures are numbered 0 to {total - 1}", status=USAGE)
    return list(indexes)


def document(answer: Answer) -> dict[str, Any]:
    """One answer as JSON."""
    return {
        "index": answer.index,
        "label": answer.label,
        "digit": answer.digit,
        "right": answer.right,
        "probabilities": answer.probabilities.tolist(),
    }


def lines(answers: Sequence[Answer], terminal: Terminal, how: str) -> list[str]:
    """Every picture with its bars, and a summary; ``how`` says how the answers were got."""
    made = []
    for answer in answers:
        made += [*_answer_lines(answer, terminal), ""]
    right = sum(answer.right for answer in answers)
    return [*made, f"{right} of {len(answers)} right; {how}"]


def _answer_lines(answer: Answer, terminal: Terminal) -> list[str]:
    sure = f"{answer.probabilities[answer.digit]:.1%}"
    word, style = ("right", "green") if answer.right else ("WRONG", "red")
    mark = ("✓ " if answer.right else "✗ ") if terminal.unicode else ""
    verdict = terminal.paint(mark + word, style)
    title = terminal.paint(f"picture {answer.index}", "bold")
    head = f"{title}: the model says {answer.digit} ({sure}), it is a {answer.label}: {verdict}"
    return [
        head,
        *(
            f"{drawn}  {_class_line(answer, digit, terminal)}"
            for digit, drawn in enumerate(_framed(answer.image, terminal))
        ),
    ]


def _framed(image: Array, terminal: Terminal) -> list[str]:
    """The picture in a frame: ten lines, as there are ten digits."""
    drawn = demo.draw(image, color=terminal.color, ascii_only=not terminal.unicode)
    side, across = ("│", "─") if terminal.unicode else ("|", "-")
    corners = "┌┐└┘" if terminal.unicode else "++++"
    rule = across * (2 * image.shape[-1])
    return [
        corners[0] + rule + corners[1],
        *(side + line + side for line in drawn),
        corners[2] + rule + corners[3],
    ]


def _class_line(answer: Answer, digit: int, terminal: Terminal) -> str:
    share = float(answer.probabilities[digit])
    drawn = bar(share, terminal.unicode)
    text = f"{digit} {drawn:<{_BAR_COLUMNS}} {share:6.1%}"
    if digit == answer.digit:
        return terminal.paint(text, "green" if answer.right else "red")
    return terminal.paint(text, "bold" if digit == answer.label else "dim")


def bar(share: float, unicode: bool) -> str:
    """A bar of up to 20 columns for 0..1; nothing beyond, and nothing for NaN."""
    filled = min(max(share if share == share else 0.0, 0.0), 1.0) * _BAR_COLUMNS
    if not unicode:
        return "#" * int(filled + 0.5)
    eighths = int(filled * 8 + 0.5)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
