# All images for amd64 and arm64 at once: `docker buildx bake --push` with REGISTRY=registry.example/cnc. For this
# machine's own architecture and without a registry: `make images`.
variable "REGISTRY" { default = "docker.io/library" }
variable "TAG" { default = "0.1.0" }

group "default" {
  targets = ["image"]
}

target "image" {
  name       = "cncmon-${trimprefix(service, "query-")}"
  matrix     = { service = ["agent", "ingest", "operator", "query-api", "simulator"] }
  context    = "."
  dockerfile = "services/${service}/Dockerfile"
  platforms  = ["linux/amd64", "linux/arm64"]
  tags       = ["${REGISTRY}/cncmon-${trimprefix(service, "query-")}:${TAG}"]
}
