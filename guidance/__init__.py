"""Built-in guidance: one module per method, named as in the registry; its docstring gives paper,
update and symbols."""

if __name__ != "invdiff.guidance":
    raise ImportError("this folder is the package invdiff.guidance; import it under that name")
