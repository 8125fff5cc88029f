"""What the site has beside the pages of docs/: the reference of commands, pages at the root, and pages of source files.

Pages link to files of the project as they lie in a checkout (``../kernels/api.py``). On the site such a link leads to a
page with that file's text.
"""

import atexit
import posixpath
import re
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from msdeform.cli import COMMANDS, GROUPS
from msdeform.common.command_line import default_text, typed
from msdeform.common.fields import Option

ROOT = Path(__file__).resolve().parents[2]
AT_THE_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".css": "css", ".js": "javascript", ".toml": "toml"}
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)((?:#[^)\s]*)?\))")
PUNCTUATION = re.compile(r"[\\`*_\[\]<]")  # what Markdown would read in a help text
FENCE = re.compile(r"^(```.*?^```\s*?$)", re.MULTILINE | re.DOTALL)


@event_priority(100)  # before mkdocstrings reads where to look
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay a copy of the packages as the reference's reader of source code needs them: in place, each with an init."""
    place = Path(tempfile.mkdtemp(prefix="msdeform-docs-"))
    atexit.register(shutil.rmtree, place)
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for package, folder in folders.items():
        copy = place.joinpath(*package.split("."))
        copy.mkdir(parents=True, exist_ok=True)
        (copy / "__init__.py").touch()
        for file in (ROOT / folder).glob("*.py"):
            shutil.copy(file, copy)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(place)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made: those at the root, commands, citation, notebooks, and files that a page names."""
    made = {
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "reference/commands.md": commands(),
        "cite.md": citation(),
    }
    texts = {**{file.src_uri: file.content_string for file in files.documentation_pages()}, **made}
    for name, text in texts.items():
        for _, link, _ in LINK.findall(FENCE.sub("", text)):
            target = _target(name, link)
            if target is not None and _place(target).startswith("source/"):
                made.setdefault(*_source(target))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text, resources = MarkdownExporter().from_filename(str(notebook))
        files.remove(files.src_uris[f"notebooks/{notebook.name}"])
        made[f"notebooks/{notebook.stem}.md"] = re.sub(r"(!\[.*?\]\()(?=output_)", rf"\1{notebook.stem}/", text)
        for name, picture in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{notebook.stem}/{name}", content=picture))
    for name, text in made.items():
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the project into links to their pages on the site."""
    name = page.file.src_uri
    if name.startswith("source/"):
        return markdown

    def turned(match: re.Match[str]) -> str:
        target = _target(name, match[2])
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(_place(target), posixpath.dirname(name) or ".") + match[3]

    # code is left as it is
    return "".join(part if part.startswith("```") else LINK.sub(turned, part) for part in FENCE.split(markdown))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Take the search's stand-in for a worker from the site itself, and nothing from elsewhere."""
    here = posixpath.relpath("site/worker.js", posixpath.dirname(page.file.dest_uri) or ".")
    return output.replace("https://unpkg.com/iframe-worker/shim", here)


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """The page of what is not found lies at no known depth; it is never opened as a file."""
    return re.sub(r"<script src=.?https://unpkg.com/iframe-worker/shim.?></script>", "", output_content)


def _target(page: str, link: str) -> str | None:
    """The file or folder that a page's link names, from the project's root; None for pages of the site."""
    at_root = page in AT_THE_ROOT.values() and page != "index.md"
    target = posixpath.normpath(
        posixpath.join("" if at_root else posixpath.join("docs", posixpath.dirname(page)), link)
    )
    on_the_site = target.startswith("docs/") and not target.endswith((".py", ".ipynb"))
    return None if (on_the_site and not at_root) or not (ROOT / target).exists() else target


def _place(target: str) -> str:
    """Where the site has a file or folder of the project."""
    if target in AT_THE_ROOT:
        return AT_THE_ROOT[target]
    if target.startswith("docs/") and not target.endswith(".py"):
        return re.sub(r"\.ipynb$", ".md", target.removeprefix("docs/"))
    return f"source/{target}/index.md" if (ROOT / target).is_dir() else f"source/{target}.md"


def _source(target: str) -> tuple[str, str]:
    """Place and text of the page of a source file or folder."""
    path, place = ROOT / target, _place(target)
    head = "---\nsearch:\n  exclude: true\n---\n"
    if path.is_dir():
        listed = subprocess.run(["git", "ls-files", "."], cwd=path, capture_output=True, text=True, check=False).stdout
        names = "\n".join(f"- `{name}`" for name in listed.splitlines())
        return place, f"{head}# {target}/\n\n{names}\n"
    language = LANGUAGES.get(path.suffix, "text")
    text = path.read_text()
    if len(text) > 400_000:
        text = text[:100_000] + "\n... (shortened here)"
    fence = "`" * (max(map(len, re.findall(r"`{3,}", text)), default=2) + 1)
    return place, f'{head}# {target}\n\n{fence}{{ .{language} linenums="1" }}\n{text}\n{fence}\n'


def commands() -> str:
    """The reference of the command line, from its parsers."""
    parts = ["# Commands\n\nWhat `msdeform COMMAND --help` says, for every command of this version.\n"]
    for title, names in GROUPS.items():
        parts.append(f"## {title.capitalize() or 'Other'}\n")
        for name in names:
            summary = COMMANDS[name].summary
            parts.append(f"### msdeform {name}\n\n{summary[:1].upper()}{summary[1:]}.\n")
            parts += [_entry(option) for option in COMMANDS[name].known_options()]
    return "\n".join(parts)


def _entry(option: Option) -> str:
    default = default_text(option).removeprefix("default: ")
    shown = f" &nbsp; {default if default in ('required', 'on') else f'`{default}`'}" if default else ""
    return f"`{typed(option)}`{shown}\n\n:   {PUNCTUATION.sub(_escaped, option.help)}\n"


def _escaped(mark: re.Match[str]) -> str:
    return "\\" + mark[0]


def citation() -> str:
    """How to cite this software and the paper, from CITATION.cff."""
    data = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = data["references"][0]
    people = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    return f"""# How to cite

This software:

```bibtex
@software{{msdeform,
  title   = {{{data["title"]}: {data["abstract"]}}},
  author  = {{{{{data["authors"][0]["name"]}}}}},
  version = {{{data["version"]}}},
  license = {{{data["license"]}}},
}}
```

The operator and the detector are those of this paper; cite it, too:

```bibtex
@inproceedings{{zhu{paper["year"]}deformable,
  title     = {{{paper["title"]}}},
  author    = {{{people}}},
  booktitle = {{{paper["collection-title"]}}},
  year      = {{{paper["year"]}}},
}}
```

`CITATION.cff` at the root of the project says the same in a form that tools read.
"""
