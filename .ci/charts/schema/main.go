// Schema keeps the chart of a cluster consistent with the definition of the resource: it generates the schema of the chart's values from
// the definition, and extracts specs that `run` compares.
//
//	schema values DEFINITION      the JSON schema of the chart's values
//	schema defaults DEFINITION    an empty spec with the API server's defaults
//	schema spec FILE              the spec of a ShardKvCluster (`-` for standard input)
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "schema:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: schema values|defaults|spec FILE")
	}
	document, err := read(args[1])
	if err != nil {
		return err
	}
	var result any
	switch args[0] {
	case "values":
		result, err = values(document)
	case "defaults":
		result, err = defaults(document)
	case "spec":
		result, err = object(document, "spec")
	default:
		err = fmt.Errorf("unknown command %q", args[0])
	}
	if err != nil {
		return fmt.Errorf("%s: %w", args[1], err)
	}
	if args[0] != "values" {
		result = prune(result)
	}
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(result)
}

// A node is a YAML mapping.
type node = map[string]any

func read(path string) (node, error) {
	text, err := io.ReadAll(os.Stdin)
	if path != "-" {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, err
	}
	var document node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return document, nil
}

// object returns the mapping at a path of keys.
func object(it node, path ...string) (node, error) {
	for _, key := range path {
		next, ok := it[key].(node)
		if !ok {
			return nil, fmt.Errorf("there is no %q that is an object", key)
		}
		it = next
	}
	return it, nil
}

// specSchema returns the schema of the spec in the definition's one version.
func specSchema(definition node) (node, error) {
	spec, err := object(definition, "spec")
	if err != nil {
		return nil, err
	}
	versions, _ := spec["versions"].([]any)
	if len(versions) != 1 {
		return nil, fmt.Errorf("there are %d versions and not 1: say here which one the chart renders", len(versions))
	}
	version, _ := versions[0].(node)
	return object(version, "schema", "openAPIV3Schema", "properties", "spec")
}

// defaults applies a schema's defaults to an empty spec, as the API server does.
func defaults(definition node) (any, error) {
	schema, err := specSchema(definition)
	if err != nil {
		return nil, err
	}
	return fill(schema, node{}), nil
}

func fill(schema node, value any) any {
	fields, isObject := value.(node)
	properties, _ := schema["properties"].(node)
	if !isObject {
		return value
	}
	for name, property := range properties {
		property, _ := property.(node)
		if _, there := fields[name]; !there && property["default"] != nil {
			fields[name] = property["default"]
		}
		if inner, there := fields[name]; there {
			fields[name] = fill(property, inner)
		}
	}
	return fields
}

// prune removes empty values: the operator treats them like missing values, except for affinity and spread, which the chart's tests
// check.
func prune(value any) any {
	switch value := value.(type) {
	case node:
		kept := node{}
		for name, inner := range value {
			if inner = prune(inner); inner != nil {
				kept[name] = inner
			}
		}
		if len(kept) > 0 {
			return kept
		}
		return nil
	case []any:
		if len(value) == 0 {
			return nil
		}
	}
	return value
}
