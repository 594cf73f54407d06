"""Every retain loss of ours keeps the contract, new ones included."""

from typing import Any, get_args

import pytest

from grun.retain_losses import RetainLossConfig
from grun.testing.retain_losses import RetainLossContract


class TestRetainLosses(RetainLossContract):
    @pytest.fixture(params=get_args(RetainLossConfig), ids=lambda kind: kind.name)
    def loss(self, request: pytest.FixtureRequest) -> Any:
        return request.param()
