package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// list has the tests that can't apply, with the reason of each.
type list map[string]string

// A reason that begins so belongs to tests that stop the whole program when they fail. They are never run.
const notRun = "Not run: "

// readList reads a list: the reason in lines with `# `, then the names of the tests, one a line.
func readList(file string) (list, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	names, reason, fresh := list{}, "", true
	for number, line := range strings.Split(string(text), "\n") {
		switch {
		case strings.HasPrefix(line, "#"):
			if fresh {
				reason = ""
			}
			reason, fresh = strings.TrimSpace(reason+" "+strings.TrimLeft(line, "# ")), false
		case strings.TrimSpace(line) == "":
			reason, fresh = "", true
		case reason == "":
			return nil, fmt.Errorf("%s:%d: %s has no reason above it", file, number+1, line)
		case names[line] != "":
			return nil, fmt.Errorf("%s:%d: %s stands twice", file, number+1, line)
		default:
			names[line], fresh = reason, true
		}
	}
	return names, nil
}

// skip returns the pattern that leaves out the listed tests, or only those that are never run. Go matches a name's parts one by one,
// and an alternative of whole patterns stands outside of all slashes.
func (l list) skip(all bool) string {
	var patterns []string
	for name, reason := range l {
		if !all && !strings.HasPrefix(reason, notRun) {
			continue
		}
		parts := strings.Split(name, "/")
		for i := range parts {
			parts[i] = "^" + regexp.QuoteMeta(parts[i]) + "$"
		}
		patterns = append(patterns, strings.Join(parts, "/"))
	}
	slices.Sort(patterns)
	return strings.Join(patterns, "|")
}

func join(patterns ...string) string {
	return strings.Join(slices.DeleteFunc(patterns, func(pattern string) bool { return pattern == "" }), "|")
}
