"""Every forget loss of ours keeps the contract, new ones included."""

from typing import Any, get_args

import pytest

from grun.forget_losses import ForgetLossConfig
from grun.testing.forget_losses import ForgetLossContract


class TestForgetLosses(ForgetLossContract):
    @pytest.fixture(params=get_args(ForgetLossConfig), ids=lambda kind: kind.name)
    def loss(self, request: pytest.FixtureRequest) -> Any:
        return request.param()
