"""``python -m tests.docs.count``: how many commands and Python blocks of the manual are run by tests, and which not.

A command that stands in several places counts in each.
"""

from tests.docs.pages import blocks, pages
from tests.docs.python import UNRUN, rule_of
from tests.docs.shell import every_line


def main() -> None:
    commands = every_line()
    run = [line.rule() for line in commands if not line.rule().reason]
    python = [rule_of(block.page) for page in pages() for block in blocks(page, "python")]
    unrun = [block for page in pages() for block in blocks(page, "py")]
    print(f"{len(pages())} pages")
    for rules, what in ((run, "commands"), (python, "Python blocks")):
        print(f"{len(rules)} {what} run, {sum(rule.slow for rule in rules)} of them by make test-full alone")
    excerpts = [block for block in unrun if any(each.holds(block) and not each.begins for each in UNRUN)]
    unrun = [block for block in unrun if block not in excerpts]
    print(f"{len(excerpts)} Python blocks that are excerpts of files which other tests run")
    print(f"{len(commands) - len(run)} commands and {len(unrun)} Python blocks not run:")
    for line in commands:
        if line.rule().reason:
            print(f"  {line.place}  {line.text}\n      {line.rule().reason}")
    for block in unrun:
        reasons = [each.reason for each in UNRUN if each.holds(block)]
        print(f"  {block.place}  {block.text.splitlines()[0]}\n      {'; '.join(reasons)}")


if __name__ == "__main__":
    main()
