"""Built-in forward operators: one module per family, named as in the registry."""

if __name__ != "invdiff.operators":
    raise ImportError("this folder is the package invdiff.operators; import it under that name")
