"""Show everything about one model."""

import attrs

from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.model import ModelDetails
from mlxk.domain.model_reference import ModelRef


@attrs.frozen
class ShowModel:
    """Resolves a reference and gathers the details of the revision it means, health included."""

    resolve: ResolveModel
    describe: DescribeModel

    def __call__(self, reference: str | ModelRef) -> ModelDetails:
        """Return the details of the model a reference means."""
        return self.describe.details(self.resolve(reference))
