"""Polynomials as source: from the inside out, s_p = c_p + Σ_i a_i s_p,i over the factors i that may follow p, and their
gradients d_i from the outside in."""

from __future__ import annotations

Monomial = tuple[int, ...]


def tree_of(monomials: tuple[Monomial, ...]) -> dict[Monomial, list[Monomial]]:
    """What may follow each beginning of a monomial."""
    tree: dict[Monomial, list[Monomial]] = {(): []}
    for monomial in monomials:
        for n in range(len(monomial)):
            prefix, longer = monomial[:n], monomial[: n + 1]
            tree.setdefault(prefix, [])
            tree.setdefault(longer, [])
            if longer not in tree[prefix]:
                tree[prefix].append(longer)
    return tree


def _name(letter: str, prefix: Monomial) -> str:
    return letter + "_" + "_".join(map(str, prefix))


def _sum(prefix: Monomial, tree: dict, terms: dict) -> str:
    """What multiplies the factors of a prefix: a variable, or for the longest their coefficient."""
    return _name("s", prefix) if tree[prefix] else terms[prefix]


def inside_out(prefix: Monomial, tree: dict, terms: dict) -> list[str]:
    """Lines that end with s_ of the prefix; `terms` are names of the coefficients."""
    lines = [line for longer in tree[prefix] if tree[longer] for line in inside_out(longer, tree, terms)]
    parts = [terms[prefix]] if prefix in terms else []
    parts += [f"a{longer[-1]} * {_sum(longer, tree, terms)}" for longer in tree[prefix]]
    return [*lines, f"{_name('s', prefix)} = {' + '.join(parts)}"]


def outside_in(prefix: Monomial, tree: dict, terms: dict) -> list[str]:
    """Lines that add to d of the factors, from u_ of the prefix."""
    lines = []
    for longer in tree[prefix]:
        i = longer[-1]
        lines.append(f"d{i} += {_name('u', prefix)} * {_sum(longer, tree, terms)}")
        if tree[longer]:
            lines.append(f"{_name('u', longer)} = {_name('u', prefix)} * a{i}")
            lines += outside_in(longer, tree, terms)
    return lines
