// Modules from which the definitions of the Prometheus operator are made: see operator_definitions in ../programs.rs.

//go:build tools

package definitions

import (
	_ "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	_ "sigs.k8s.io/controller-tools/cmd/controller-gen"
)
