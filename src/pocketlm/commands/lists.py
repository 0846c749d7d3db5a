"""Options that take several values at once, as the shell expands ``--text *.txt``."""

from __future__ import annotations

import click


class ListCommand(click.Command):
    """A command whose options with the metavar FILE... may be given once with several values.

    ``--text a b -o md`` is read as ``--text a --text b -o md``: values end where an option begins.
    Arguments of the command stand before such an option, or after ``--``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeats the option before each of its values."""
        repeatable = {
            name
            for parameter in self.params
            if isinstance(parameter, click.Option) and str(parameter.metavar).endswith("...")
            for name in parameter.opts
        }
        expanded: list[str] = []
        option, values = None, 0
        for i, word in enumerate(args):
            if word == "--":
                expanded += args[i:]
                break
            if word.startswith("-") and word != "-":
                option, values = (word if word in repeatable else None), 0
            elif option is not None:
                expanded += [option] if values else []
                values += 1
            expanded.append(word)
        return super().parse_args(ctx, expanded)
