"""What the neuron planned for a model is what its workers found that they hold."""

from tests.end_to_end.harness import Cortex


def test_plan_and_measurement_are_told_and_agree(cortex: Cortex):
    assert cortex.chat(model="demo").status_code == 200
    state = cortex.quiet("demo")
    assert abs(state.bytes_measured - state.bytes_reserved) < 0.03 * state.bytes_reserved, state
