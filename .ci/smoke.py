"""What a user of the bare wheel meets: its files, its page, an example, the way to the rest."""

import doctest
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import sysconfig

import egd_optax

package = pathlib.Path(egd_optax.__file__).parent
installed = pathlib.Path(sysconfig.get_path("purelib"), "egd_optax")
assert package == installed, f"imported from {package}"

wheel = importlib.metadata.distribution("egd-optax")
assert wheel.version == egd_optax.__version__
tops = {file.parts[0] for file in wheel.files}
assert tops == {"egd_optax", f"egd_optax-{wheel.version}.dist-info"}, tops
assert (package / "py.typed").is_file()

page = wheel.metadata.get_payload()
assert not re.search(r"\]\((?!\w+:)", page), "a link of the long description leads nowhere"
blocks = re.findall(r"```python\n(.*?)```", page.partition("## Install and use")[2], re.S)
example = next(block for block in blocks if "import" in block and "flax" not in block)
parsed = doctest.DocTestParser().get_doctest(example, {}, "README", None, 0)
assert doctest.DocTestRunner().run(parsed).failed == 0
assert len(parsed.examples) > 5

command = [sys.executable, "-c", "import egd_optax.models"]
tried = subprocess.run(command, capture_output=True, text=True)
assert tried.returncode != 0
assert tried.stderr.rstrip().endswith("pip install 'egd-optax[models]'"), tried.stderr

sys.stdout.write(f"egd_optax {wheel.version} works from the wheel, without extras, in {package}\n")
