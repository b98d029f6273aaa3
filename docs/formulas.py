"""Turns formulas into MathML as the site is built: a browser needs no script for them."""

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves of $...$ and $$...$$.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content, **_):
    return FORMULA.sub(mathml, content)


def mathml(formula):
    tag, latex = formula[1], html.unescape(formula[2]).strip()
    latex = latex.replace(r"\_", "_")  # in names, which stand in \text
    block = tag == "div"
    element = convert(latex, display="block" if block else "inline")
    return f'<{tag} class="formula">{element}</{tag}>'
