package main

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"time"
)

// The time that a node has to answer for the keyspace. etcd's tests give up before.
const patience = time.Minute

// The exit code of the CLI when there is a keyspace of the name.
const exists = 7

// accompany creates the keyspace at the first member, waits until this member answers for it, and tells that it is ready.
func accompany(m *member, cli string) error {
	if m.isProxied() {
		if err := proxy(m); err != nil {
			return err
		}
	}
	if m.address == m.peers[0] {
		if err := create(m, cli); err != nil {
			return err
		}
	}
	if err := answers("http://" + m.bound() + "/readyz"); err != nil {
		return err
	}
	fmt.Printf("ready to serve client requests on %s\n", m.client.String())
	if m.isProxied() {
		select {}
	}
	return nil
}

// create creates the keyspace. A restarted member finds it. A new group refuses keyspaces until its feature level has risen, which
// takes a moment.
func create(m *member, cli string) error {
	args := []string{"--endpoints", m.address, "keyspace", "create", keyspace}
	if m.quota > 0 {
		args = append(args, "--quota", fmt.Sprint(m.quota))
	}
	late := time.Now().Add(patience)
	for {
		output, err := exec.Command(cli, args...).CombinedOutput()
		var exit *exec.ExitError
		if err == nil || errors.As(err, &exit) && exit.ExitCode() == exists {
			return nil
		}
		if time.Now().After(late) {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, output)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// answers waits until a URL answers with status 200.
func answers(url string) error {
	client := http.Client{Timeout: time.Second}
	late := time.Now().Add(patience)
	for {
		answer, err := client.Get(url)
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("it answers %s", answer.Status)
		}
		if time.Now().After(late) {
			return fmt.Errorf("%s: %w", url, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
