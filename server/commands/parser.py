"""The argument parser of all commands: one that asks "did you mean" after a slip of the finger."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

NEAR = 0.7  # of two words, as difflib measures it


class Parser(argparse.ArgumentParser):
    """Used for the program and, because it is, for each of its commands."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """As argparse does; unknown options end the program with what was meant, perhaps."""
        chosen, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = self._options_of(chosen)
            said = [f"{word}{did_you_mean(word.partition('=')[0], known)}" for word in unknown]
            self.error(f"unrecognized arguments: {', '.join(said)}")
        return chosen

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        chosen, unknown = super().parse_known_args(args, namespace)
        # The innermost command that was chosen is parsed first.
        if not hasattr(chosen, "parser"):
            chosen.parser = self
        return chosen, unknown

    def _options_of(self, chosen: argparse.Namespace) -> list[str]:
        parsers = {id(parser): parser for parser in (self, chosen.parser)}
        return [name for parser in parsers.values() for name in parser._option_string_actions]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is None or value in choices:
            return
        names = [str(choice) for choice in choices]
        advice = did_you_mean(str(value), names) or f"; one of {', '.join(names)}"
        raise argparse.ArgumentError(action, f"unknown {value!r}{advice}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean serve?``, or nothing where nothing is near."""
    near = difflib.get_close_matches(word, list(known), 1, NEAR)
    return f"; did you mean {near[0]}?" if near else ""
