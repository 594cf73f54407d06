"""What every loss and every adapter must keep, as test classes to inherit, for those kept elsewhere, too.

    import pytest
    from grun.testing.forget_losses import ForgetLossContract
    from my_package.my_file import MyLossConfig

    class TestMyLoss(ForgetLossContract):
        @pytest.fixture
        def loss(self):
            return MyLossConfig()

They need pytest, a second or two, and nothing else.
"""
