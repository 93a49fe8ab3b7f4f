"""``ldlm completion``: shells read what it prints, and complete with it."""

import shutil
import subprocess

import pytest

from ldlm_jax.cli import main

BASH = """
eval "$(<{script})"
asked() {{
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMPREPLY=()
  _shtab_ldlm
  echo "${{COMPREPLY[@]}}"
}}
asked ldlm ev
asked ldlm eval --text
asked ldlm export --dtype ""
asked ldlm sample --model chec
"""
FISH = """
source {script}
complete -C "ldlm ev" | cut -f 1
complete -C "ldlm eval --text" | cut -f 1
complete -C "ldlm export --dtype b" | cut -f 1
"""
ZSH = """
autoload -Uz compinit
compinit -u -d {script}.dump
eval "$(<{script})"
echo $_comps[ldlm]
"""


def told(shell, script, capsys, tmp_path):
    """What a shell prints for a script that reads the completion."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    assert main(["completion", shell]) == 0
    file = tmp_path / f"ldlm.{shell}"
    file.write_text(capsys.readouterr().out)
    command = [shell, *(["-f"] if shell == "zsh" else []), "-c", script.format(script=file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_flags_choices_and_folders(capsys, tmp_path):
    found = told("bash", BASH, capsys, tmp_path)
    assert found == ["eval", "--text-file", "float32", "bfloat16", "checkpoints"]


def test_fish_completes_commands_flags_and_choices(capsys, tmp_path):
    assert told("fish", FISH, capsys, tmp_path) == ["eval", "--text-file", "bfloat16"]


def test_zsh_reads_it(capsys, tmp_path):
    assert told("zsh", ZSH, capsys, tmp_path) == ["_shtab_ldlm"]
