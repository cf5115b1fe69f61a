"""What the operator tells Prometheus of the resources that it keeps."""

from shadowserve_operator.metrics import OperatorMetrics


def not_ready(metrics: OperatorMetrics, namespace: str, status: str = "False") -> float | None:
    labels = {"namespace": namespace, "kind": "PrefixCache", "condition": "Ready", "status": status}
    return metrics.registry.get_sample_value("shadowserve_resources", labels)


def test_resources_are_counted_by_their_namespace_and_what_they_say_last() -> None:
    metrics = OperatorMetrics()
    metrics.say("PrefixCache", "llm", "kv", {"Ready": "False"})
    metrics.say("PrefixCache", "llm", "other", {"Ready": "False"})
    metrics.say("PrefixCache", "chat", "kv", {"Ready": "Unknown"})
    assert (not_ready(metrics, "llm"), not_ready(metrics, "chat", "Unknown")) == (2, 1)
    metrics.say("PrefixCache", "llm", "kv", {"Ready": "True"})
    assert not_ready(metrics, "llm") == 1
    metrics.say("PrefixCache", "llm", "other", {})
    assert not_ready(metrics, "llm") == 0, "it is gone"


def test_whether_an_operator_acts_is_told_from_the_start() -> None:
    metrics = OperatorMetrics()
    told = [metrics.registry.get_sample_value("shadowserve_operator_leader")]
    for acts in (True, False):
        metrics.leads(acts)
        told.append(metrics.registry.get_sample_value("shadowserve_operator_leader"))
    assert told == [0, 1, 0]
