"""YAML of others, checked before anything is built of it: a few lines can stand for gigabytes, or be too deep for the stack."""

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 100


def checked(text: str) -> str:
    """The text as it is. Raises yaml.YAMLError where it is no YAML, repeats parts of itself by aliases or is nested too deeply."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it repeats parts of itself by aliases (*name), which no config of ssl_zoo does")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep")
    return text
