"""What is wrong with a command line is one line, with the nearest known word."""

import pytest

from schemas.one_line_parser import OneLineParser


def parser() -> OneLineParser:
    parser = OneLineParser("tool")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show")
    show.add_argument("--space", choices=("generation", "causal"))
    show.add_argument("--limit", type=int)
    commands.add_parser("report")
    return parser


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["shwo"], "error: argument command: invalid choice: 'shwo'; did you mean 'show'?"),
        (["show", "--limt", "3"], "error: unrecognized arguments: --limt 3; did you mean '--limit'?"),
        (
            ["show", "--space=caussal"],
            "error: argument --space: invalid choice: 'caussal'; did you mean 'causal'?",
        ),
        (["show", "--limit", "x"], "error: argument --limit: invalid int value: 'x'; see tool show --help"),
        ([], "error: the following arguments are required: command; see tool --help"),
    ],
)
def test_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == line + "\n"
