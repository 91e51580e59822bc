"""``effdl completion bash|zsh|fish``: the script a shell sources."""

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash: effdl completion bash > ~/.local/share/bash-completion/completions/effdl
    zsh:  effdl completion zsh > a folder of $fpath, as _effdl
    fish: effdl completion fish > ~/.config/fish/completions/effdl.fish
    """
    root = ctx.find_root().command
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(root, {}, "effdl", "_EFFDL_COMPLETE").source())
