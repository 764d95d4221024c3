package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// rules are the rules of the definition, each with its conversion to JSON schema, or nil if only the API server can check it. Only the
// API server checks rules that compare with the old value.
var rules = map[string]func(node) error{
	"self % 2 == 1": odd,
	"self.all(key, !key.startsWith('shardkv.io/'))":                                          noPrefix("shardkv.io/"),
	"self.all(key, !key.startsWith('shardkv.io/') && !key.startsWith('app.kubernetes.io/'))": noPrefix("shardkv.io/", "app.kubernetes.io/"),
	// These compare two fields, one of which has a default that only the node knows.
	"!has(self.electionTimeoutMs) || self.electionTimeoutMs >= 3 * (has(self.heartbeatIntervalMs) ? self.heartbeatIntervalMs : 100)": nil,
	"!has(self.heartbeatIntervalMs) || has(self.electionTimeoutMs) || self.heartbeatIntervalMs <= 133":                               nil,
}

// kept are the keywords that mean the same in a definition and in a JSON schema.
var kept = []string{"description", "enum", "maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties", "pattern", "required", "type"}

// known are the keywords that the chart's schema leaves out.
var known = []string{"default", "format", "title", "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-map-type"}

// foreign are the fields of Kubernetes' own types: their structure is checked, but their long descriptions are left out.
var foreign = []string{"affinity", "tolerations", "topologySpreadConstraints"}

// values returns the schema of the chart's values: all fields of the spec, the image as repository, tag and digest, and the chart's
// own values.
func values(definition node) (any, error) {
	schema, err := specSchema(definition)
	if err != nil {
		return nil, err
	}
	converted, err := convert("spec", schema, true)
	if err != nil {
		return nil, err
	}
	properties := converted["properties"].(node)
	policy := properties["imagePullPolicy"]
	if policy == nil || properties["image"] == nil {
		return nil, fmt.Errorf("the spec has no image and imagePullPolicy any more: change here how the chart's image is converted")
	}
	delete(properties, "image")
	delete(properties, "imagePullPolicy")
	for name, property := range own(policy) {
		if properties[name] != nil {
			return nil, fmt.Errorf("spec.%s has the name of a value that the chart adds", name)
		}
		properties[name] = property
	}
	converted["$schema"] = "http://json-schema.org/draft-07/schema#"
	converted["title"] = "shardkv"
	converted["description"] = "Values of the chart shardkv. Generated from the resource's definition by `make manifests`: do not edit."
	converted["required"] = []string{"image"}
	return converted, nil
}

// own returns the schema of the chart's values that are not fields of the spec.
func own(pullPolicy any) node {
	text := func(description, pattern string) node {
		return node{"type": "string", "description": description, "pattern": pattern}
	}
	texts := func(description string) node {
		return node{"type": "object", "description": description, "additionalProperties": node{"type": "string"}}
	}
	closed := func(description string, properties node) node {
		return node{"type": "object", "description": description, "additionalProperties": false, "properties": properties}
	}
	image := closed("The image of all nodes.", node{
		"repository": text("Repository of the image, without a tag.", "^[^@ ]+$"),
		"tag":        text("Tag of the image; empty for the chart's appVersion.", "^([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$"),
		"digest":     text("Digest of the image; overrides the tag.", "^(sha256:[0-9a-f]{64})?$"),
		"pullPolicy": pullPolicy,
	})
	image["required"] = []string{"repository"}
	return node{
		"global":       node{"type": "object", "description": "Values that a parent chart shares with all; not used here."},
		"nameOverride": text("Name of the resource; empty for the release's name.", "^([a-z]([-a-z0-9]{0,33}[a-z0-9])?)?$"),
		"labels":       texts("Labels of the resource."),
		"annotations":  texts("Annotations of the resource."),
		"image":        image,
		"test": closed("The pod of `helm test`.", node{
			"timeoutMs": node{"type": "integer", "minimum": 1000, "maximum": 600000, "description": "Time limit of each step, in milliseconds."},
			"resources": node{"type": "object", "description": "CPU and memory of each container of the pod."},
			"labels":    texts("Labels of the pod."),
		}),
	}
}

// convert converts a schema of the definition to JSON schema.
func convert(path string, from node, described bool) (node, error) {
	to := node{}
	for _, keyword := range slices.Sorted(maps.Keys(from)) {
		if slices.Contains(kept, keyword) {
			to[keyword] = from[keyword]
		} else if err := convertKeyword(path, from, to, keyword, described); err != nil {
			return nil, err
		}
	}
	if !described {
		delete(to, "description")
	}
	// Misspelt values are refused, as `kubectl apply` refuses misspelt fields.
	if to["properties"] != nil && to["additionalProperties"] == nil {
		to["additionalProperties"] = false
	}
	if from["nullable"] == true {
		to["type"] = []any{to["type"], "null"}
	}
	return to, convertRules(path, from, to)
}

func convertKeyword(path string, from, to node, keyword string, described bool) error {
	var err error
	switch value := from[keyword].(type) {
	case node:
		switch keyword {
		case "properties":
			to[keyword], err = convertAll(path, value, described)
			return err
		case "items", "additionalProperties":
			to[keyword], err = convert(path+"."+keyword, value, described)
			return err
		}
	case float64:
		if (keyword == "minimum" || keyword == "maximum") && value == float64(int64(value)) {
			to[keyword] = int64(value)
			return nil
		}
	case bool:
		switch keyword {
		case "nullable":
			return nil
		case "x-kubernetes-int-or-string":
			to["type"] = []string{"integer", "string"}
			return nil
		}
	}
	if slices.Contains(known, keyword) || keyword == "x-kubernetes-validations" {
		return nil
	}
	return fmt.Errorf("%s: the keyword %s is new: say here what becomes of it", path, keyword)
}

func convertAll(path string, from node, described bool) (node, error) {
	to := node{}
	for name, property := range from {
		property, _ := property.(node)
		inner := path + "." + name
		converted, err := convert(inner, property, described && !isInside(path))
		if err != nil {
			return nil, err
		}
		to[name] = converted
	}
	return to, nil
}

func isInside(path string) bool {
	return slices.ContainsFunc(strings.Split(path, "."), func(part string) bool { return slices.Contains(foreign, part) })
}

func convertRules(path string, from, to node) error {
	validations, _ := from["x-kubernetes-validations"].([]any)
	for _, validation := range validations {
		validation, _ := validation.(node)
		rule, _ := validation["rule"].(string)
		if strings.Contains(rule, "oldSelf") {
			continue
		}
		say, there := rules[rule]
		if !there {
			return fmt.Errorf("%s: the rule %q is new: add it to the rules here, or nil if a schema can't say it", path, rule)
		}
		if say == nil {
			continue
		}
		if err := say(to); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// odd makes a list of bounds, so that the message names what may stand there.
func odd(to node) error {
	least, hasLeast := to["minimum"].(int64)
	most, hasMost := to["maximum"].(int64)
	if !hasLeast || !hasMost || most-least > 100 {
		return fmt.Errorf("an odd number needs bounds that are near each other")
	}
	var numbers []int64
	for number := least | 1; number <= most; number += 2 {
		numbers = append(numbers, number)
	}
	delete(to, "minimum")
	delete(to, "maximum")
	to["enum"] = numbers
	return nil
}

func noPrefix(prefixes ...string) func(node) error {
	return func(to node) error {
		forbidden := node{}
		for _, prefix := range prefixes {
			forbidden["^"+regexp.QuoteMeta(prefix)] = false
		}
		to["patternProperties"] = forbidden
		return nil
	}
}
