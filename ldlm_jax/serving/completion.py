"""``ldlm completion``: what a shell needs to complete commands, flags and files."""

import argparse

SHELLS = ("bash", "zsh", "fish")
_FOLDERS = {"workdir", "model", "init", "out"}
_FILES = {"config", "source", "requests", "revise", "text_file", "html", "json", "jsonl", "scorer"}


def add_completion_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that ``ldlm completion`` understands."""
    parser.add_argument("shell", choices=SHELLS, help='as in: eval "$(ldlm completion bash)"')


def print_completion(shell: str, parser: argparse.ArgumentParser) -> None:
    """Print the script that the shell reads."""
    import shtab

    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            if action.dest in _FOLDERS:
                action.complete = shtab.DIRECTORY
            elif action.dest in _FILES:
                action.complete = shtab.FILE
    print(shtab.complete(parser, shell))
