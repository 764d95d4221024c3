package main

import (
	"fmt"
	"slices"
	"strings"
)

// results holds the last action of each test.
type results struct {
	actions map[string]string
	parents map[string]bool
}

func newResults() *results {
	return &results{actions: map[string]string{}, parents: map[string]bool{}}
}

// add takes a result, and tells of failures at once.
func (r *results) add(event *event) {
	switch event.Action {
	case "run":
		// A test that never ends, because its program was stopped, has failed.
		r.actions[event.Test] = "fail"
		for name := event.Test; strings.Contains(name, "/"); {
			name = name[:strings.LastIndex(name, "/")]
			r.parents[name] = true
		}
	case "pass", "fail", "skip":
		if event.Test != "" {
			r.actions[event.Test] = event.Action
		}
	}
}

// leaves returns the names of the tests without subtests, sorted.
func (r *results) leaves() []string {
	var names []string
	for name := range r.actions {
		if !r.parents[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (r *results) count() int { return len(r.actions) }

func (r *results) anyFailed() bool {
	for _, action := range r.actions {
		if action == "fail" {
			return true
		}
	}
	return false
}

func (r *results) totals() (passed, skipped, failed int) {
	for _, name := range r.leaves() {
		switch r.actions[name] {
		case "pass":
			passed++
		case "skip":
			skipped++
		default:
			failed++
		}
	}
	return passed, skipped, failed
}

// judge returns the differences between the results and the list.
func (r *results) judge(list list, options *options) []string {
	var problems []string
	failedBelow := map[string]bool{}
	for _, name := range r.leaves() {
		_, listed := list[name]
		switch action := r.actions[name]; {
		case action == "fail" && !listed:
			problems = append(problems, name+" failed, and isn't listed")
		case action == "pass" && listed:
			problems = append(problems, name+" is listed, and passes: take it off the list")
		}
		if r.actions[name] == "fail" {
			for parent := name; strings.Contains(parent, "/"); {
				parent = parent[:strings.LastIndex(parent, "/")]
				failedBelow[parent] = true
			}
		}
	}
	for name := range r.parents {
		if r.actions[name] == "fail" && !failedBelow[name] {
			problems = append(problems, name+" failed outside of its subtests")
		}
	}
	if options.listed && options.run == "" && options.skip == "" {
		for name, reason := range list {
			if _, ran := r.actions[name]; !ran && !strings.HasPrefix(reason, notRun) {
				problems = append(problems, fmt.Sprintf("%s is listed, and there is no such test", name))
			}
		}
	}
	slices.Sort(problems)
	return problems
}
