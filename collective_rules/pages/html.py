"""Renders pages of HTML from templates. A page loads nothing, and has a light and a dark style.

A template stands beside the module that fills it, and extends `pages/base.html`. All values are escaped: names come
from programs and from files.
"""

from __future__ import annotations

import functools
from typing import Any

import jinja2

from collective_rules.messages import ranks_text
from collective_rules.pages.wording import bytes_text, cut, exact, plain, plural, share_text


def render(template: str, **values: Any) -> str:
    """Return the page of a template, named as "reports/page.html"; the template reads the `values` by their names."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("collective_rules", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "bytes": bytes_text,
        "cut": cut,
        "exact": exact,
        "plain": plain,
        "plural": plural,
        "ranks": ranks_text,
        "share": share_text,
    }
    return environment
