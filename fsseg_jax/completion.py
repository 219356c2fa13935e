"""Completion of `fsseg` by the Tab key, in bash and zsh."""

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Mapping

from fsseg_jax.config import FIELDS, config_names

_SCRIPT = """\
# Completes fsseg. For bash, in a file that it reads when it needs it:
#   fsseg completion > ~/.local/share/bash-completion/completions/fsseg
# For zsh, in a file that ~/.zshrc reads:
#   fsseg completion > ~/.fsseg_completion; echo 'source ~/.fsseg_completion' >> ~/.zshrc
if [ -n "${{ZSH_VERSION:-}}" ]; then
    autoload -U +X compinit && compinit
    autoload -U +X bashcompinit && bashcompinit
fi

_fsseg() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} options=
    # Bash makes a word of the = in --option=value, zsh does not.
    case $word in
        =) before=${{COMP_WORDS[COMP_CWORD-1]}} word= ;;
        --config=*) before=--config word=${{word#*=}} ;;
        *) [ "$before" = = ] && before=${{COMP_WORDS[COMP_CWORD-2]}} ;;
    esac
    COMPREPLY=()
    if [ "$before" = --config ]; then
        COMPREPLY=($(compgen -W "{configs}" -- "$word"))
        return
    elif [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{programs} --help --version" -- "$word"))
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    case $word in
        --config.*) options="{fields}" ;;
    esac
    case $word in
        -*)
            COMPREPLY=($(compgen -W "$options" -- "$word"))
            # A value follows.
            case ${{COMPREPLY[*]:-}} in *=|*.) compopt -o nospace 2> /dev/null ;; esac
            ;;
    esac
}}
complete -o default -F _fsseg fsseg
"""


def script(programs: Mapping[str, str]) -> str:
    """The commands that make a shell complete programs, their options, configurations and fields.

    Args:
        programs: the modules of programs, by their names.
    """
    cases = [
        f'        {name}) options="{" ".join(_options(name, module))}" ;;'
        for name, module in programs.items()
    ]
    return _SCRIPT.format(
        programs=" ".join(programs),
        configs=" ".join(config_names()),
        cases="\n".join(cases),
        fields=" ".join(f"--config.{field}=" for field in FIELDS),
    )


def _options(name: str, module: str) -> list[str]:
    """The options of a program as its `--help` lists them, those with a value with `=`."""
    sys.argv, printed = [f"fsseg {name}", "--help"], io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(module).main()
    listed = printed.getvalue().partition("\noptions:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^  (?:-\w, )?(--\w+)( [A-Z[])?", listed, re.MULTILINE)
    options = [f"{option}=" if value else option for option, value in found]
    return [*options, "--config."] if "--config=" in options or "--workdir=" in options else options
