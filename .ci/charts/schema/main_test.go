package main

import (
	"strings"
	"testing"
)

func integer(more node) node {
	schema := node{"type": "integer", "minimum": 1.0, "maximum": 7.0}
	for key, value := range more {
		schema[key] = value
	}
	return schema
}

func rule(text string) node {
	return node{"x-kubernetes-validations": []any{node{"rule": text, "message": "no"}}}
}

func TestRulesBecomeSchemaOrAreKnownNotTo(t *testing.T) {
	got, err := convert("x", integer(rule("self % 2 == 1")), true)
	if numbers, _ := got["enum"].([]int64); err != nil || len(numbers) != 4 || numbers[3] != 7 || got["maximum"] != nil {
		t.Fatal(got, err)
	}
	if _, err := convert("x", integer(rule("self == oldSelf")), true); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsNewIsAnErrorAndNotLost(t *testing.T) {
	for _, schema := range []node{integer(rule("self > 3")), integer(node{"multipleOf": 2.0})} {
		if _, err := convert("spec.x", schema, true); err == nil || !strings.Contains(err.Error(), "spec.x: the ") {
			t.Fatal(err)
		}
	}
}

func TestMisspeltFieldsAreRefused(t *testing.T) {
	got, err := convert("x", node{"type": "object", "nullable": true, "properties": node{"a": integer(nil)}}, true)
	if kinds, _ := got["type"].([]any); err != nil || got["additionalProperties"] != false || len(kinds) != 2 {
		t.Fatal(got, err)
	}
}

func TestDefaultsAreAppliedInsideOfDefaults(t *testing.T) {
	schema := node{"properties": node{
		"a": node{"default": node{}, "properties": node{"b": node{"default": 3}}},
		"c": node{"properties": node{"d": node{"default": 4}}},
	}}
	got, _ := fill(schema, node{}).(node)
	if a, _ := got["a"].(node); a["b"] != 3 || got["c"] != nil {
		t.Fatal(got)
	}
}
