"""YAML as people write it in manifests and on the command line; a key that is there twice is a mistake."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader keeps the last of two equal keys and drops the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """What a text holds.

    Raises:
        ValueError: it is not valid YAML; says where.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # PyYAML passes on whatever its constructors raise: IndexError for an empty !!int, and so on.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None
