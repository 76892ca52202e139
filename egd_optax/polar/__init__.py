"""Polar factors of matrices: arrays in, arrays out; knows no tree and no Optax.

| method         | class      | what it does                                             |
|----------------|------------|----------------------------------------------------------|
| `Auto`         | exact      | the default: Gram, or SVD for small matrices on CPU      |
| `Gram`         | exact      | matrix products and Cholesky factors of the short side   |
| `SVD`          | exact      | singular value decomposition, the reference              |
| `NewtonSchulz` | polynomial | products alone, gains as good as its coefficient table   |
| `Randomized`   | sketch     | the leading `rank` directions, by random projections     |
| `Streaming`    | sketch     | the same directions, followed from step to step          |
"""

from egd_optax.polar._apply import as_method as as_method
from egd_optax.polar._apply import polar_factor as polar_factor
from egd_optax.polar._auto import Auto as Auto
from egd_optax.polar._coefficients import polar_express as polar_express
from egd_optax.polar._gram import Gram as Gram
from egd_optax.polar._method import PolarMethod as PolarMethod
from egd_optax.polar._newton_schulz import NewtonSchulz as NewtonSchulz
from egd_optax.polar._sketch import Randomized as Randomized
from egd_optax.polar._sketch import Streaming as Streaming
from egd_optax.polar._svd import SVD as SVD
