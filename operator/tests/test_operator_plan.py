"""What is planned, and what the plan says about it."""

import copy
from typing import Any

import pytest
from cluster_contract import config_map
from fakes import FakeCluster

from shadowserve_operator.apply import apply
from shadowserve_operator.kinds import Json
from shadowserve_operator.plan import Action, Plan, first_difference, plan_changes


def live(manifest: Json, **metadata: Any) -> Json:
    body = copy.deepcopy(manifest)
    body["metadata"] |= {"uid": "u1", "resourceVersion": "7", **metadata}
    return body


def only(plan: Plan) -> tuple[Action, str]:
    (step,) = plan.steps
    return step.action, step.reason


def test_what_is_missing_is_created() -> None:
    assert only(plan_changes([config_map("a", {})], [])) == (Action.CREATE, "it does not exist")


def test_a_settled_system_writes_nothing_and_says_why() -> None:
    wanted = config_map("a", {"k": "v"})
    plan = plan_changes([wanted], [live(wanted)])
    assert only(plan) == (Action.KEEP, "it is as it should be")
    assert plan.sentences() == []


def test_an_edit_is_named() -> None:
    wanted = config_map("a", {"k": "v"})
    edited = live(wanted)
    edited["data"]["k"] = "w"
    assert plan_changes([wanted], [edited]).sentences() == ["change ConfigMap a: .data.k is 'w' instead of 'v'"]


def test_a_value_of_a_secret_is_never_told() -> None:
    secret = {**config_map("a", {"password": "hidden"}), "kind": "Secret"}
    edited = live(secret)
    edited["data"]["password"] = "known"
    (sentence,) = plan_changes([secret], [edited]).sentences()
    assert sentence == "change Secret a: .data.password differs"


def test_what_others_add_is_their_business() -> None:
    wanted = config_map("a", {"k": "v"})
    more = live(wanted, annotations={"someone": "else"}, managedFields=[])
    assert only(plan_changes([wanted], [more]))[0] is Action.KEEP


def test_what_nobody_wants_is_deleted_first() -> None:
    plan = plan_changes([config_map("new", {})], [live(config_map("old", {}))])
    assert plan.sentences() == [
        "delete ConfigMap old: nothing asks for it any more",
        "create ConfigMap new: it does not exist",
    ]


def test_what_somebody_else_made_is_left_alone() -> None:
    wanted = config_map("a", {"k": "v"})
    plan = plan_changes([wanted], [live(wanted, labels={}, ownerReferences=[])])
    assert only(plan)[0] is Action.LEAVE
    assert plan.writes == ()
    assert "rename or delete it" in str(plan.foreign[0])


def test_a_fixed_field_needs_a_new_object() -> None:
    wanted = {**config_map("a", {}), "apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {"serviceName": "b"}}
    before = live(wanted)
    before["spec"] = {"serviceName": "a"}
    action, reason = only(plan_changes([wanted], [before]))
    assert action is Action.REPLACE
    assert reason == ".spec.serviceName is 'a' instead of 'b', which cannot be changed in place"


@pytest.mark.parametrize(
    ("wanted", "there", "difference"),
    [
        ({"memory": "1024Mi"}, {"memory": "1Gi"}, None),
        ({"cpu": "1000m"}, {"cpu": "1"}, None),
        ({"cpu": "2"}, {"cpu": "1"}, ".cpu is '1' instead of '2'"),
        ({"list": []}, {}, None),
        ({"map": {}}, {}, None),
        ({"list": [{"name": "a", "v": 1}]}, {"list": [{"name": "a", "v": 2}]}, ".list[a].v is 2 instead of 1"),
        ({"list": [1]}, {"list": [1, 2]}, ".list has 2 entries instead of 1"),
        ({"deep": {"x": 1}}, {}, ".deep is missing"),
    ],
)
def test_the_first_difference_is_told(wanted: Json, there: Json, difference: str | None) -> None:
    assert first_difference(wanted, there) == difference


async def test_what_is_refused_is_told_and_the_rest_goes_on() -> None:
    cluster = FakeCluster("default")
    plan = plan_changes([config_map("a", {}, namespace="nowhere"), config_map("b", {})], [])
    outcome = await apply(cluster, plan)
    assert outcome.writes == 1
    assert [str(each) for each in outcome.obstacles] == ['ConfigMap a: namespaces "nowhere" not found']


def test_our_object_without_its_label_is_still_ours() -> None:
    wanted = config_map("a", {"k": "v"})
    stripped = live(wanted, labels={})
    assert only(plan_changes([wanted], [stripped]))[0] is Action.CHANGE
