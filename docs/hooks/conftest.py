"""Nothing here is a test: MkDocs imports these modules, and the tests do without MkDocs."""

collect_ignore_glob = ["*.py"]
