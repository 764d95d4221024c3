package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	path = "/api/v1/namespaces/default/configmaps"
	// The time that one request may take.
	patience = 15 * time.Second
	// The time that the watch may need for the last changes.
	drain = 30 * time.Second
)

// tenant is an API server under load.
type tenant struct {
	name, url, token string
	client           *http.Client

	objects []object
	// The resource version of the list, from which the watch begins.
	listed string

	updates, repeated, events, checks int
	slowest, slowestCheck             time.Duration
}

// object is a ConfigMap with a counter.
type object struct {
	APIVersion string            `json:"apiVersion,omitempty"`
	Kind       string            `json:"kind,omitempty"`
	Metadata   metadata          `json:"metadata"`
	Data       map[string]string `json:"data,omitempty"`
}

type metadata struct {
	Name            string            `json:"name,omitempty"`
	Namespace       string            `json:"namespace,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
}

// prepare makes the objects, and lists them.
func (t *tenant) prepare(ctx context.Context, objects int) error {
	for n := range objects {
		made := object{
			APIVersion: "v1", Kind: "ConfigMap",
			Metadata: metadata{Name: fmt.Sprintf("object-%d", n), Labels: map[string]string{"load": "tenants"}},
			Data:     map[string]string{"count": "0", "text": strings.Repeat("x", 1000)},
		}
		if err := t.call(ctx, http.MethodPost, path, made, &made); err != nil {
			return err
		}
		t.objects = append(t.objects, made)
	}
	var list struct {
		Metadata metadata `json:"metadata"`
		Items    []object `json:"items"`
	}
	if err := t.call(ctx, http.MethodGet, path+"?labelSelector=load%3Dtenants", nil, &list); err != nil {
		return err
	}
	if len(list.Items) != objects {
		return fmt.Errorf("the list has %d objects of %d", len(list.Items), objects)
	}
	t.listed = list.Metadata.ResourceVersion
	return nil
}

// work updates the objects until the context ends, while it watches them and checks that the API server is ready. It then waits until the
// watch has seen the last change.
func (t *tenant) work(ctx context.Context, rate int) error {
	watching, end := context.WithCancel(context.Background())
	defer end()
	seen := make(chan error, 1)
	all := make(chan int, 1)
	go func() { seen <- t.watch(watching, all) }()
	checking, stop := context.WithCancel(ctx)
	defer stop()
	checked := make(chan error, 1)
	go func() { checked <- t.check(checking) }()

	updated := make(chan error, 1)
	go func() { updated <- t.update(checking, rate) }()
	var err error
	select {
	case err = <-updated:
		stop()
		if other := <-checked; err == nil {
			err = other
		}
	case err = <-checked:
		stop()
		if other := <-updated; err == nil {
			err = other
		}
	case err = <-seen:
		stop()
		<-updated
		<-checked
		return err
	}
	if err != nil {
		return err
	}
	all <- t.updates
	select {
	case err := <-seen:
		return err
	case <-time.After(drain):
		end()
		<-seen
		return fmt.Errorf("the watch saw %d of %d changes", t.events, t.updates)
	}
}

// update changes one object after another. Each update names the version before, so that a lost one is noticed.
func (t *tenant) update(ctx context.Context, rate int) error {
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		object := &t.objects[t.updates%len(t.objects)]
		object.Data["count"] = fmt.Sprint(t.updates/len(t.objects) + 1)
		begun := time.Now()
		// It is finished also when the load ends, so that the number of changes is known.
		if err := t.change(context.WithoutCancel(ctx), object); err != nil {
			return err
		}
		t.slowest = max(t.slowest, time.Since(begun))
		t.updates++
	}
}

// change writes an object, and does what controllers do after an error: it reads the object, and writes it again if the change isn't there.
// An API server doesn't repeat a write whose store ended a connection, whatever the store is.
func (t *tenant) change(ctx context.Context, wanted *object) error {
	at := path + "/" + wanted.Metadata.Name
	deadline := time.Now().Add(patience)
	for {
		err := t.call(ctx, http.MethodPut, at, *wanted, wanted)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		t.repeated++
		var found object
		if other := t.call(ctx, http.MethodGet, at, nil, &found); other != nil {
			return fmt.Errorf("%w; then %w", err, other)
		}
		changed := found.Data["count"] == wanted.Data["count"]
		wanted.Metadata = found.Metadata
		if changed {
			return nil
		}
	}
}

// check asks each second whether the API server is ready and alive.
func (t *tenant) check(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for _, what := range []string{"/readyz", "/livez"} {
			begun := time.Now()
			if err := t.call(context.WithoutCancel(ctx), http.MethodGet, what, nil, nil); err != nil {
				return err
			}
			t.slowestCheck = max(t.slowestCheck, time.Since(begun))
			t.checks++
		}
	}
}

// watch checks that each change arrives once and in order, until it has seen as many as all tells. A watch that ends before is lost.
func (t *tenant) watch(ctx context.Context, all <-chan int) error {
	request, err := t.request(ctx, http.MethodGet, path+"?watch=1&labelSelector=load%3Dtenants&timeoutSeconds=7200&resourceVersion="+t.listed, nil)
	if err != nil {
		return err
	}
	response, err := t.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return refused(request, response)
	}
	events := make(chan error)
	counts := make(map[string]int)
	decoder := json.NewDecoder(response.Body)
	go func() {
		for {
			err := t.next(decoder, counts)
			select {
			case events <- err:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	most := -1
	for {
		if most == t.events {
			return nil
		}
		select {
		case most = <-all:
		case err := <-events:
			if err != nil {
				return err
			}
			t.events++
		}
	}
}

// next reads one event of a watch.
func (t *tenant) next(decoder *json.Decoder, counts map[string]int) error {
	var event struct {
		Type   string `json:"type"`
		Object object `json:"object"`
	}
	if err := decoder.Decode(&event); err != nil {
		return fmt.Errorf("the watch was lost: %w", err)
	}
	name := event.Object.Metadata.Name
	if event.Type != "MODIFIED" {
		return fmt.Errorf("the watch has an event %s of %q", event.Type, name)
	}
	counts[name]++
	if got := event.Object.Data["count"]; got != fmt.Sprint(counts[name]) {
		return fmt.Errorf("the watch shows change %s of %s, and change %d is next", got, name, counts[name])
	}
	return nil
}

// call sends a request, and reads the answer into result.
func (t *tenant) call(ctx context.Context, method, path string, body, result any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := t.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	response, err := t.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		return refused(request, response)
	}
	if result == nil {
		_, err := io.Copy(io.Discard, response.Body)
		return err
	}
	return json.NewDecoder(response.Body).Decode(result)
}

func (t *tenant) request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, t.url+path, content)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+t.token)
	request.Header.Set("Content-Type", "application/json")
	return request, nil
}

func refused(request *http.Request, response *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(response.Body, 500))
	return fmt.Errorf("%s %s: %s: %s", request.Method, request.URL.Path, response.Status, text)
}

func (t *tenant) report() string {
	return fmt.Sprintf("%s: %d updates (%d repeated, the slowest %d ms), %d changes watched, %d health checks (the slowest %d ms)",
		t.name, t.updates, t.repeated, t.slowest.Milliseconds(), t.events, t.checks, t.slowestCheck.Milliseconds())
}
